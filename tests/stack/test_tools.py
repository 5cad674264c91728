"""The tools of an installation, as `gyre check` shows them before its findings."""

from importlib.metadata import version

import pytest

from stack.tools import MISSING, find_tools
from tests.conftest import mlflow_server, new_settings, redis_server, unused_port


def states_of(settings):
    return {tool.name: tool.state for tool in find_tools(settings)}


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path)


def test_a_tool_tells_its_version_and_one_that_does_not_run_the_command_that_starts_it(
    settings,
):
    with mlflow_server(settings), redis_server(settings.redis_port, settings.home):
        states = states_of(settings)
    assert states["Feast"] == version("feast")
    assert states["MLflow"] == version("mlflow")
    assert states["Redis"].startswith("7.")  # the Redis that Valkey replaces
    assert states["Airflow"] == "not running; gyre up starts it"


def test_a_tool_of_a_team_that_does_not_answer_is_shown_with_the_reason(settings):
    elsewhere = settings.model_copy(
        update={
            "mlflow_url": f"http://127.0.0.1:{unused_port()}",
            "redis_url": f"redis://:secret@127.0.0.1:{unused_port()}/0",
            "without": frozenset({"airflow"}),
        }
    )
    tools = {tool.name: tool for tool in find_tools(elsewhere)}
    assert "MLflow does not answer (is it up?)" in tools["MLflow"].state
    assert "refused" in tools["Redis"].state
    assert tools["Airflow"].state == "left out by GYRE_WITHOUT"
    problems = [tool.state for tool in find_tools(elsewhere) if tool.name == MISSING]
    assert [problem.split()[0] for problem in problems] == [
        "GYRE_REDIS_URL",
        "GYRE_MLFLOW_URL:",
    ]
    assert "secret" not in repr(tools)
