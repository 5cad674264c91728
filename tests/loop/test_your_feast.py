"""The commands of "You have Feast" and "You have a model", on what feast init writes."""

import subprocess
import sys
from datetime import UTC, datetime

import httpx
import pytest

from core.settings import CLONE
from tests.conftest import BIN, new_settings
from tests.support.feature_repo.team import feast, labels
from tests.support.tools.clone import finished
from tests.support.tools.pages import read_page
from tests.support.tools.stack import Stack

MODEL = "driver_trips"
ROW = {"driver_id": 1001, "val_to_add": 1, "val_to_add_2": 2}
NAMES = {
    "Driver ID": "driver_id",
    "asked": "asked_at",
    "reached goal": "reached_goal",
    "known at": "known_at",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a team's project, which nobody of Gyre made, and the spec of the page."""
    feast(tmp_path, "init", "warehouse")
    repository = tmp_path / "warehouse" / "feature_repo"
    table = labels(repository).rename(columns=NAMES)
    table.to_parquet(tmp_path / "warehouse" / "labels.parquet", index=False)
    feast(repository, "apply")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    feast(repository, "materialize-incremental", now)
    files = read_page("how-to/your-feast.md").files
    (tmp_path / f"{MODEL}.toml").write_text(files[f"models/{MODEL}.toml"])
    return tmp_path


@pytest.mark.nightly
def test_the_commands_of_both_pages_end_with_versions_that_answer(folder):
    stack = Stack(new_settings(folder / "home", demo_start=None))
    environment = stack.environment | {"PATH": f"{BIN}:{stack.environment['PATH']}"}
    environment.pop("GYRE_PROJECT", None)
    address = f"{stack.settings.serving_address}/predict"
    (commands,) = read_page("how-to/your-feast.md").commands
    assert len(commands.splitlines()) == 5
    try:
        done = finished(commands, folder, environment, 0, 900)
        assert f"{MODEL}: version 1 is in production" in done.stdout
        answer = httpx.post(address, json=ROW, timeout=30).json()
        assert (answer["model_version"], answer["features_from"]) == ("1", "online")
        command = [sys.executable, "-W", "ignore", "-m"]
        command += ["tests.support.training.team_models", stack.settings.mlflow_address]
        command += [str(folder / "saved"), str(folder / "found.json")]
        subprocess.run(command, cwd=CLONE, check=True, capture_output=True)
        (commands,) = read_page("how-to/your-model.md").commands
        assert len(commands.splitlines()) == 5
        done = finished(commands, folder, environment, 0, 900)
        assert f"{MODEL}: version 2 is in production, in place of 1" in done.stdout
        report = finished(
            f"cd warehouse; gyre monitor {MODEL}", folder, environment, 0, 300
        )
        assert MODEL in report.stdout
        status = finished("cd warehouse; gyre status", folder, environment, 0, 300)
        assert MODEL in status.stdout
    finally:
        finished("cd warehouse; gyre down", folder, environment, 0, 300)
