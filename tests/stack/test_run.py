"""One program of a stack in a container: its settings, its secrets of files, where others are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx
import psutil
import pytest
import yaml

from core.errors import SettingsError, StackError
from core.settings import CLONE, load_settings
from monitoring.serving_status import read_serving
from stack.environment import (
    airflow_environment,
    child_environment,
    load_secrets,
    make_secrets,
)
from stack.programs import programs, run
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


def test_a_command_that_the_user_sets_for_airflow_wins_but_for_its_database(
    tmp_path, monkeypatch
):
    settings = new_settings(tmp_path)
    make_secrets(settings)
    before = airflow_environment(settings)
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY_CMD", "cat key")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD", "cat address")
    changed = before.items() ^ airflow_environment(settings).items()
    assert {name for name, _ in changed} == {"AIRFLOW__CORE__FERNET_KEY"}


def test_what_is_elsewhere_is_not_started_and_is_where_people_are_sent(tmp_path):
    urls = {
        f"{name}_url": f"http://{name}" for name in ("mlflow", "airflow", "serving")
    }
    settings = new_settings(
        tmp_path, **urls, redis_url="redis://r", links={"mlflow": "https://m"}
    )
    make_secrets(settings)
    assert [program.name for program in programs(settings)] == ["consumer", "console"]
    assert (settings.link("mlflow"), settings.link("airflow")) == (
        "https://m",
        "http://airflow",
    )
    assert airflow_environment(settings)["AIRFLOW__API__BASE_URL"] == "http://airflow"
    with pytest.raises(
        SettingsError, match="Input should be 'serving', 'console', 'mlflow'"
    ):
        load_settings(home=tmp_path, links={"redis": "r"})


def test_a_program_that_there_is_none_of_is_refused_with_those_there_are(tmp_path):
    settings = new_settings(tmp_path)
    with pytest.raises(
        StackError, match=r"expected init, mlflow, airflow-api, .* found nothing"
    ):
        run(settings, "nothing")


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


def test_a_pod_of_a_task_asks_airflow_for_that_task(tmp_path):
    asked = []

    class Airflow(BaseHTTPRequestHandler):
        """Airflow's API, as far as it says that the task is somebody else's by now."""

        def do_PATCH(self):
            asked.append(self.path)
            self.send_response(409)
            self.end_headers()
            self.wfile.write(
                b'{"detail": {"reason": "invalid_state", "message": "running"}}'
            )

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Airflow)
    Thread(target=server.serve_forever, daemon=True).start()
    task = {
        "task_id": "ingest",
        "dag_id": "ingest",
        "run_id": "manual",
        "try_number": 1,
    }
    task |= {"id": str(uuid.uuid4()), "dag_version_id": str(uuid.uuid4())}
    task |= {"pool_slots": 1, "priority_weight": 1, "queue": "default"}
    workload = {
        "type": "ExecuteTask",
        "token": "t",
        "ti": task,
        "log_path": "attempt=1.log",
    }
    workload |= {"dag_rel_path": "ingest.py", "bundle_info": {"name": "dags-folder"}}
    # As the provider does (pod_generator.workload_to_command_args).
    command = [
        "python",
        "-m",
        "airflow.sdk.execution_time.execute_workload",
        "--json-string",
    ]
    url = f"http://127.0.0.1:{server.server_port}"
    env = os.environ | {"GYRE_HOME": str(tmp_path / "home"), "GYRE_AIRFLOW_URL": url}
    done = subprocess.run(
        [*TASK, *command, json.dumps(workload)],
        env=env,
        capture_output=True,
        check=False,
    )
    server.shutdown()
    server.server_close()
    assert asked == [f"/execution/task-instances/{task['id']}/run"], done.stdout
    assert done.returncode


def test_a_command_is_of_a_task_alone(tmp_path):
    settings = new_settings(tmp_path)
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


@pytest.fixture
def replicas():
    """Servers that answer as serving does: a replica's readiness, and one row or two."""
    servers = []

    def start(*readiness, port=0):
        for rows, ready in enumerate(readiness, 1):
            address = f"127.0.0.{rows if port else 1}", port
            server = HTTPServer(address, partial(Replica, rows, ready))
            Thread(target=server.serve_forever, daemon=True).start()
            servers.append(server)
        return [f"http://127.0.0.1:{server.server_port}" for server in servers]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Replica(BaseHTTPRequestHandler):
    def __init__(self, rows, ready, *args):
        self.rows, self.ready = rows, ready
        super().__init__(*args)

    def do_GET(self):
        text = json.dumps(self.ready)
        if self.path == "/metrics":
            text = "# TYPE gyre_predictions counter\n"
            text += f'gyre_predictions_total{{model="m"}} {self.rows}\n'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def test_replicas_are_read_as_one_and_one_that_is_not_ready_is_not_hidden(
    tmp_path, replicas
):
    addresses = replicas({"ready": True}, {"ready": False, "why": "no version"})
    settings = new_settings(tmp_path, serving_url=" ".join(addresses))
    found = read_serving(settings)
    assert found.ready == {"ready": False, "why": "no version"}
    assert found.sums("gyre_predictions_total", "model") == {"m": 3.0}
    dead = new_settings(
        tmp_path, serving_url=f"{addresses[0]} http://127.0.0.1:{unused_port()}"
    )
    with pytest.raises(httpx.HTTPError):
        read_serving(dead)


def test_a_name_with_several_addresses_stands_for_as_many_replicas(tmp_path, replicas):
    """What a headless Service is: here a namespace with an /etc/hosts of its own has the name."""
    port = unused_port()
    replicas({"ready": True}, {"ready": False, "why": "no version"}, port=port)
    named = {"two": ["127.0.0.1", "127.0.0.2"], "one": ["127.0.0.1"]}
    lines = [
        f"{address} {name}\n" for name, found in named.items() for address in found
    ]
    (tmp_path / "hosts").write_text("".join(lines))
    inside = [
        shutil.which("unshare") or pytest.skip("no unshare"),
        "--map-root-user",
        "--mount",
    ]
    mount = f"mount --bind {tmp_path / 'hosts'} /etc/hosts"
    if subprocess.run(
        [*inside, "sh", "-c", mount], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")
    read = "from core.settings import load_settings as settings; from monitoring.serving_status "
    read += "import read_serving; s = read_serving(settings()); "
    read += "print(sorted(s.replicas), s.ready['ready'], len(s.samples))"
    command = [
        *inside,
        "sh",
        "-c",
        f'{mount} && exec "$@"',
        "sh",
        sys.executable,
        "-c",
        read,
    ]

    def found(name):
        env = os.environ | {
            "GYRE_HOME": str(tmp_path),
            "GYRE_SERVING_URL": f"http://{name}:{port}",
        }
        return subprocess.run(
            command, env=env, capture_output=True, text=True, check=True
        ).stdout.strip()

    each = [f"at http://127.0.0.{n}:{port}" for n in (1, 2)]
    assert found("two") == f"{[f'http://two:{port} {one}' for one in each]} False 2"
    assert found("one") == f"{[f'http://one:{port} {each[0]}']} True 1"
