"""One program of a stack in a container: its settings, its secrets of files, where others are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import psutil
import pytest
import yaml

from core.errors import SettingsError, StackError
from core.settings import CLONE, load_settings
from stack.environment import (
    airflow_environment,
    child_environment,
    load_secrets,
    make_secrets,
)
from stack.machine import prepare
from stack.processes import end_stack, states
from stack.programs import PROGRAMS, own, run, started
from tests.conftest import (
    BIN,
    answers,
    at_most,
    new_settings,
    redis_server,
    running,
    unused_port,
    wait_until,
)

GIVEN = {
    "airflow_fernet": "f",
    "airflow_api": "a",
    "airflow_jwt": "j",
    "airflow_password": "p",
}


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("GYRE_SECRETS_DIR", str(folder))
    return folder


def test_a_file_of_secrets_is_a_setting_where_the_environment_has_none(
    secrets, tmp_path, monkeypatch
):
    (secrets / "gyre_database_url").write_text("postgresql://of-a-file/gyre\n")
    (secrets / "gyre_redis_url").write_text("redis://of-a-file\n")
    (secrets / "aws_secret_access_key").write_text("key\n")
    monkeypatch.setenv("GYRE_REDIS_URL", "redis://of-the-environment")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    settings = load_settings(home=tmp_path)
    assert settings.database_url == "postgresql://of-a-file/gyre"
    assert settings.redis_url == "redis://of-the-environment"
    assert os.environ.pop("AWS_SECRET_ACCESS_KEY") == "key"
    temporary = child_environment(settings.beside(tmp_path / "beside"))
    assert temporary["GYRE_SECRETS_DIR"] != str(secrets), "it has a database of its own"


def test_given_secrets_of_airflow_are_used_and_written_down_nowhere_but_for_its_login(
    secrets, tmp_path
):
    settings = load_settings(home=tmp_path)
    with pytest.raises(StackError, match="holds no stack yet"):
        load_secrets(settings)
    for name, value in GIVEN.items():
        (secrets / name).write_text(f"{value}\n")
    make_secrets(settings)
    assert load_secrets(settings) == {
        "fernet": "f",
        "api": "a",
        "jwt": "j",
        "password": "p",
    }
    (only,) = (tmp_path / "airflow").iterdir()
    assert json.loads(only.read_text()) == {"admin": "p"}


def test_what_is_elsewhere_is_not_started_and_is_where_people_are_sent(tmp_path):
    urls = {
        f"{name}_url": f"http://{name}" for name in ("mlflow", "airflow", "serving")
    }
    settings = new_settings(
        tmp_path, **urls, redis_url="redis://r", links={"mlflow": "https://m"}
    )
    make_secrets(settings)
    names = [program.name for program in own(settings, PROGRAMS)]
    assert names == ["consumer", "console"]
    assert (settings.link("mlflow"), settings.link("airflow")) == (
        "https://m",
        "http://airflow",
    )
    assert airflow_environment(settings)["AIRFLOW__API__BASE_URL"] == "http://airflow"
    with pytest.raises(
        SettingsError, match="Input should be 'serving', 'console', 'mlflow'"
    ):
        load_settings(home=tmp_path, links={"redis": "r"})


def test_with_airflow_elsewhere_a_second_start_changes_nothing_and_new_settings_count(
    tmp_path, monkeypatch
):
    port = unused_port()
    urls = {name: f"http://127.0.0.1:{unused_port()}" for name in ("MLFLOW", "AIRFLOW")}
    urls |= {"SERVING": urls["MLFLOW"], "REDIS": f"redis://127.0.0.1:{port}"}
    for name, url in urls.items():
        monkeypatch.setenv(f"GYRE_{name}_URL", url)
    monkeypatch.setenv("GYRE_CONSOLE_PORT", str(unused_port()))
    settings = load_settings(home=tmp_path / "home")
    lines = []

    def pids():
        with started(settings, lines.append):
            pass
        rows = states(settings)
        assert set(rows) == {"consumer", "console"}
        return {row["pid"] for row in rows.values()}

    with redis_server(port, tmp_path):
        prepare(settings)
        try:
            first = pids()
            assert pids() == first
            monkeypatch.setenv("GYRE_ALERT_URLS", "json://127.0.0.1")
            settings = load_settings(home=tmp_path / "home")
            assert pids().isdisjoint(first)
        finally:
            end_stack(settings)
    assert any(line.startswith("  consumer: ready in") for line in lines)


def test_a_program_becomes_the_process_that_was_started_and_ends_by_sigterm(tmp_path):
    port, redis = unused_port(), unused_port()
    given = {"GYRE_HOME": str(tmp_path), "GYRE_CONSOLE_PORT": str(port)}
    with redis_server(redis, tmp_path):
        given["GYRE_REDIS_URL"] = f"redis://127.0.0.1:{redis}"
        with running(
            [str(BIN / "gyre"), "run", "console"], tmp_path / "log", **given
        ) as process:
            wait_until(
                "its answer", lambda: answers(f"http://127.0.0.1:{port}/health/live")
            )
            assert psutil.Process(process.pid).cmdline()[1:3] == [
                "-m",
                "monitoring.console",
            ]
            process.terminate()
            assert process.wait(600) in {0, -signal.SIGTERM}


VALUES = yaml.safe_load(
    (CLONE / "deploy" / "kubernetes" / "airflow-values.yaml").read_text()
)
TASK = [str(BIN / "gyre"), *VALUES["workers"]["kubernetes"]["command"][1:]]
"""What Airflow's chart puts before the command of a task; the executor appends that."""


def test_a_pod_of_a_task_has_gyres_options_and_those_of_the_charts_file(tmp_path):
    (tmp_path / "airflow.cfg").write_text(
        "[core]\nexecutor = CeleryExecutor\n[kubernetes_executor]\nnamespace = of-the-chart\n"
    )
    asked = [
        ("core", "executor"),
        ("core", "dags_folder"),
        ("kubernetes_executor", "namespace"),
    ]
    code = f"from airflow.configuration import conf; print([conf.get(*each) for each in {asked}])"
    env = os.environ | {
        "GYRE_HOME": str(tmp_path / "home"),
        "AIRFLOW_CONFIG": str(tmp_path / "airflow.cfg"),
        "AIRFLOW__CORE__EXECUTOR": "KubernetesExecutor",
    }
    done = subprocess.run(
        [*TASK, "python", "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(
        ["KubernetesExecutor", str(CLONE / "dags"), "of-the-chart"]
    )


def test_a_program_of_another_name_and_a_command_of_another_program_are_refused(
    tmp_path,
):
    settings = new_settings(tmp_path)
    expected = r"expected init, mlflow, redis, airflow-api, .* found nothing"
    with pytest.raises(StackError, match=expected):
        run(settings, "nothing")
    for name, command in (("task", []), ("mlflow", ["true"])):
        with pytest.raises(StackError, match="gyre run task -- COMMAND"):
            run(settings, name, command)


@pytest.mark.timed
def test_a_redis_that_refuses_is_named_within_ten_seconds_without_its_password(
    tmp_path,
):
    address = f"redis://:secret@127.0.0.1:{unused_port()}/0"
    env = os.environ | {"GYRE_HOME": str(tmp_path), "GYRE_REDIS_URL": address}
    began = time.monotonic()
    done = subprocess.run(
        [BIN / "gyre", "run", "consumer"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - began < at_most(10)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"gyre: GYRE_REDIS_URL {address.rpartition('@')[2]}: Error 111"
    )
    assert "secret" not in done.stderr
    assert not any(tmp_path.iterdir())
