"""The commands of docs/how-to/your-mlflow.md, from the page: a stack on a team's MLflow."""

import re

import pytest

from core.project import CLONE
from mlflow_server.api.registry import Registry
from tests.conftest import BIN, new_settings
from tests.mlflow_server.conftest import client
from tests.support.tools.clone import finished
from tests.support.tools.stack import MODEL, Stack
from tests.support.tools.team_mlflow import USER, team_mlflow

PAGE = (CLONE / "docs" / "how-to" / "your-mlflow.md").read_text()
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)[0]


@pytest.mark.nightly
def test_the_five_commands_end_with_a_prediction_of_a_version_in_the_teams_mlflow(
    tmp_path, monkeypatch
):
    assert len(COMMANDS.splitlines()) == 5
    with team_mlflow(tmp_path / "team") as team:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(team.authority))
        settings = new_settings(tmp_path / "home", demo_start=None)
        stack = Stack(settings)
        environment = stack.environment | {"PASSWORD": USER[1]}
        environment["PATH"] = f"{BIN}:{environment['PATH']}"
        commands = COMMANDS.replace("https://mlflow.example.com", team.address)
        try:
            done = finished(commands, CLONE, environment, 0, 1700)
            assert f"  {MODEL}: version 1 is in production" in done.stdout
            assert stack.predict().json()["model_version"] == "1"
            programs = stack.run("status")
            assert "mlflow-follower" in programs
        finally:
            stack.run("down")
        here = settings.model_copy(
            update={"mlflow_url": team.address, "mlflow_prefix": "shop."}
        )
        assert Registry(here).aliases(MODEL) == {"production": "1"}
        names = [model.name for model in client(here).search_registered_models()]
        assert all(name.startswith("shop.") for name in names)
        assert not (settings.home / "mlflow" / "mlflow.db").exists()
        for log in (settings.home / "logs").rglob("*"):
            if log.is_file():
                assert USER[1] not in log.read_text(errors="replace"), log
