"""Programs that `gyre up` does not start, because a team has its own."""

import pytest
from pydantic import SecretStr

from core.errors import SettingsError
from core.project import ENV_FILE
from core.settings import load_settings
from stack.environment import child_environment
from stack.machine import airflow_problems, mlflow_problems
from stack.programs import PROGRAMS, local_programs, used_elsewhere
from tests.conftest import mlflow_server, new_settings, unused_port

OF_AIRFLOW = {"airflow-api", "scheduler", "dag-processor"}


def started(settings):
    return {program.name for program in local_programs(settings, PROGRAMS)}


@pytest.mark.parametrize(
    ("without", "left_out"),
    [
        ("airflow", OF_AIRFLOW),
        ("mlflow", {"mlflow"}),
        ("redis airflow", {"redis", *OF_AIRFLOW}),
    ],
)
def test_programs_that_are_left_out_are_not_started_and_their_children_know_it(
    tmp_path, monkeypatch, without, left_out
):
    monkeypatch.setenv("GYRE_WITHOUT", without)
    settings = load_settings(home=tmp_path)
    all_started = started(new_settings(tmp_path, without=frozenset()))
    assert all_started - started(settings) == left_out
    follows_mlflow = started(settings) - all_started == {"mlflow-follower"}
    assert follows_mlflow == ("mlflow" in left_out)
    environment = child_environment(settings)
    assert set(environment["GYRE_WITHOUT"].split()) == set(without.split())
    beside = settings.beside(tmp_path / "other")
    assert started(beside) == all_started
    assert "GYRE_WITHOUT" not in child_environment(beside)


def test_another_program_than_these_is_refused_by_name(tmp_path):
    expected = "GYRE_WITHOUT: Input should be 'airflow', 'mlflow' or 'redis' .*'kafka'"
    with pytest.raises(SettingsError, match=expected):
        load_settings(home=tmp_path, without=["kafka"])


def test_an_mlflow_that_is_expected_is_named_with_its_address(tmp_path):
    settings = new_settings(tmp_path, without=frozenset({"mlflow", "airflow"}))
    address = settings.mlflow_address
    (problem,) = mlflow_problems(settings)
    assert problem.startswith("GYRE_MLFLOW_URL: MLflow does not answer (is it up?): ")
    assert address in problem
    with mlflow_server(settings):
        assert mlflow_problems(settings) == []
    line = f"mlflow: not started, the one at {address} is used"
    assert used_elsewhere(settings) == [line]


def test_an_airflow_of_a_team_that_is_down_is_named_before_anything_starts(tmp_path):
    address = f"http://127.0.0.1:{unused_port()}"
    login = {"airflow_user": "ann", "airflow_password": SecretStr("secret")}
    settings = new_settings(tmp_path, airflow_url=address, **login)
    (problem,) = airflow_problems(settings)
    assert problem.startswith(f"GYRE_AIRFLOW_URL: Airflow at {address} does not answer")
    assert "secret" not in problem
    left_out = settings.model_copy(update={"without": frozenset({"airflow"})})
    assert airflow_problems(left_out) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("MLFLOW_TRACKING_PASSWORD=a%secret", "MLFLOW_TRACKING_PASSWORD is no setting"),
        ("GYRE_AIRFLOW_PASWORD=a%secret", "GYRE_AIRFLOW_PASWORD: expected the name of"),
    ],
)
def test_a_line_that_is_no_setting_is_named_without_its_value(tmp_path, line, expected):
    (tmp_path / ENV_FILE).write_text(f"{line}\n")
    with pytest.raises(SettingsError, match=f"^gyre.env: {expected}") as error:
        load_settings(home=tmp_path)
    assert "secret" not in str(error.value)
