"""The commands of "You have Feast" and "You have a model", on what feast init writes."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from core.project import CLONE
from tests.conftest import BIN, new_settings
from tests.support.feature_repo.team import feast, labels
from tests.support.tools.clone import finished
from tests.support.tools.pages import read_page
from tests.support.tools.stack import Stack
from tests.support.training.loans import loans, make_project

MODEL = "driver_trips"
ROW = {"driver_id": 1001, "val_to_add": 1, "val_to_add_2": 2}
SAVE = """
import sys
import mlflow.xgboost, pandas, xgboost
from mlflow.models import infer_signature
rows = pandas.read_parquet(sys.argv[1]).astype({"children": "int64"})
inputs = rows[["income", "children"]]
model = xgboost.XGBClassifier(n_estimators=20, max_depth=2).fit(inputs, rows["defaulted"])
mlflow.xgboost.save_model(model, sys.argv[2], signature=infer_signature(inputs))
"""
"""What a team runs: it fits a model and saves it."""
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


@pytest.mark.nightly
def test_the_commands_of_the_page_on_watching_end_with_a_verdict(tmp_path):
    project = tmp_path / "loans"
    project.mkdir()
    files = read_page("how-to/watch-only.md").files
    make_project(project, files["models/loans.toml"])
    rows = loans().tail(200)
    command = [sys.executable, "-W", "ignore", "-c", SAVE]
    command += [project / "loans.parquet", tmp_path / "saved"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = rows.assign(id=rows["loan_id"].astype(str), score=0.4)
    theirs["scored_at"] = datetime.now(UTC) - timedelta(minutes=5)
    theirs.to_parquet(project / "predictions.parquet")
    stack = Stack(new_settings(tmp_path / "home", demo_start=None))
    environment = stack.environment | {"PATH": f"{BIN}:{stack.environment['PATH']}"}
    environment.pop("GYRE_PROJECT", None)
    commands = read_page("how-to/watch-only.md").commands[0]
    assert len(commands.splitlines()) == 5
    try:
        done = finished(commands, tmp_path, environment, 0, 900)
        assert "loans: no version yet: gyre adopt loans MODEL" in done.stdout
        assert "version 1 is in production" in done.stdout
        assert "200 predictions arrived from its table" in done.stderr
    finally:
        finished("cd loans; gyre down", tmp_path, environment, 0, 300)
