"""One program of a stack, as in a container: its settings, secrets in files, programs elsewhere."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from core.errors import StackError
from core.project import CLONE
from core.settings import load_settings
from stack.airflow_config import write_airflow_config
from stack.environment import (
    child_environment,
    load_secrets,
    make_secrets,
)
from stack.programs import PROGRAMS, local_programs
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
from tests.support.tools.clone import finished

SECRETS = {"fernet": "f", "api": "a", "jwt": "j", "password": "p"}
OPTIONS_OF_AIRFLOW = """
import json
import sys
from airflow.configuration import conf
print(json.dumps([conf.get(*name.split(".")) for name in sys.argv[1:]]))
"""


def options_of_airflow(settings, *names, **variables):
    """Return what Airflow reads in a shell that has what `gyre env` prints."""
    command = [sys.executable, "-c", OPTIONS_OF_AIRFLOW, *names]
    env = os.environ | child_environment(settings) | variables
    return json.loads(subprocess.check_output(command, env=env))


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("GYRE_SECRETS_DIR", str(folder))
    return folder


def test_a_secret_in_a_file_is_a_setting_where_the_environment_has_none(
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


def test_given_secrets_of_airflow_are_used_and_only_its_login_is_written(
    secrets, tmp_path
):
    settings = load_settings(home=tmp_path)
    with pytest.raises(StackError, match="holds no stack yet"):
        load_secrets(settings)
    for name, value in SECRETS.items():
        (secrets / f"airflow_{name}").write_text(f"{value}\n")
    make_secrets(settings)
    assert load_secrets(settings) == SECRETS
    (only,) = (tmp_path / "airflow").iterdir()
    assert json.loads(only.read_text()) == {"admin": "p"}


def test_programs_that_run_elsewhere_are_not_started_here(tmp_path):
    settings = new_settings(
        tmp_path,
        mlflow_url="http://mlflow",
        airflow_url="http://airflow",
        serving_url="http://serving",
        redis_url="redis://r",
        links={"mlflow": "https://m"},
    )
    make_secrets(settings)
    names = [program.name for program in local_programs(settings, PROGRAMS)]
    assert names == ["mlflow-follower", "consumer", "console"]
    # Links of pages and mails.
    assert settings.link("mlflow") == "https://m"
    assert settings.link("airflow") == "http://airflow"
    write_airflow_config(settings)
    assert options_of_airflow(settings, "api.base_url") == ["http://airflow"]


def test_airflow_reads_the_options_of_the_stack_from_a_file_of_its_owner(tmp_path):
    settings = new_settings(
        tmp_path, database_url="postgresql://gyre:half%25half@127.0.0.1:1/loop"
    )
    make_secrets(settings)
    write_airflow_config(settings)
    file = tmp_path / "airflow" / "airflow.cfg"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().startswith("# Written by Gyre whenever the stack starts")
    secrets = load_secrets(settings)
    environment = " ".join(child_environment(settings).values())
    assert not [text for text in (*secrets.values(), "half%") if text in environment]
    names = ("database.sql_alchemy_conn", "core.fernet_key", "core.parallelism")
    values = options_of_airflow(settings, *names, AIRFLOW__CORE__PARALLELISM="3")
    assert values == [settings.schema_url("airflow"), secrets["fernet"], "3"]


def test_the_run_command_becomes_the_program_and_ends_by_sigterm(tmp_path):
    settings = new_settings(tmp_path)
    command = [str(BIN / "gyre"), "run", "console"]
    env = child_environment(settings)
    with (
        redis_server(settings.redis_port, tmp_path),
        running(command, tmp_path / "log", **env) as process,
    ):
        address = f"{settings.console_address}/health/live"
        wait_until("its answer", lambda: answers(address))
        program = psutil.Process(process.pid).cmdline()[1:3]
        assert program == ["-m", "monitoring.console"]
        process.terminate()
        assert process.wait(600) in {0, -signal.SIGTERM}


def test_a_task_pod_has_the_options_of_gyre_and_of_the_chart(tmp_path):
    config = tmp_path / "airflow.cfg"
    config.write_text(
        "[core]\nexecutor = CeleryExecutor\n[kubernetes_executor]\nnamespace = chart\n"
    )
    code = (
        "from airflow.configuration import conf;"
        "print(conf.get('core', 'executor'), conf.get('core', 'dags_folder'),"
        " conf.get('kubernetes_executor', 'namespace'))"
    )
    env = os.environ | {
        "GYRE_HOME": str(tmp_path / "home"),
        "AIRFLOW_CONFIG": str(config),
        "AIRFLOW__CORE__EXECUTOR": "KubernetesExecutor",
    }
    file = CLONE / "deploy" / "kubernetes" / "airflow-values.yaml"
    workers = yaml.safe_load(file.read_text())["workers"]
    # What Airflow's chart puts before the command of a task; the executor appends that.
    _, *arguments = workers["kubernetes"]["command"]
    command = [BIN / "gyre", *arguments, "python", "-c", code]
    output = subprocess.check_output(command, env=env, text=True)
    assert output.split() == ["KubernetesExecutor", str(CLONE / "dags"), "chart"]


@pytest.mark.timed
def test_a_redis_that_refuses_is_named_within_ten_seconds_without_its_password(
    tmp_path,
):
    place = f"127.0.0.1:{unused_port()}/0"
    address = f"redis://:secret@{place}"
    env = os.environ | {"GYRE_HOME": str(tmp_path), "GYRE_REDIS_URL": address}
    start = time.monotonic()
    done = finished(f"{BIN}/gyre run consumer", CLONE, env, 1)
    assert time.monotonic() - start < at_most(10)
    assert done.stderr.startswith(f"gyre: GYRE_REDIS_URL {place}: Error 111")
    assert "secret" not in done.stderr
    assert not any(tmp_path.iterdir())
