"""Airflow's API on a busy machine: a program that answers late, over real sockets."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core.errors import StackError
from core.project import CLONE
from stack.airflow_api import AirflowApi
from stack.environment import make_secrets
from tests.conftest import BIN, new_settings

SECRET = "a secret of the team"
LATE_SECONDS = 1.0
TIMEOUT_SECONDS = 0.3


@contextmanager
def listening(handler):
    """The address of a server that answers by a handler."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def busy_airflow():
    """Answer the first request to each path after its client has gone; yield (address, bodies)."""
    answered_paths = set()
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            path = self.path.partition("?")[0]
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status = 201 if self.command == "POST" else 200
            if path in answered_paths and path.endswith(("dagRuns", "pools")):
                status = 409 if self.command == "POST" else 200  # it is there already
            if self.command == "POST":
                bodies.append((path, json.loads(body)))
            if path not in answered_paths:
                answered_paths.add(path)
                time.sleep(LATE_SECONDS)
            answer = {"access_token": "t", "dag_run_id": "other", "dag_runs": []}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = answer  # noqa: N815
        do_POST = answer  # noqa: N815

        def handle(self):
            with suppress(OSError):  # its client has gone
                super().handle()

        def log_message(self, *_):
            pass

    with listening(Handler) as address:
        yield address, bodies


@pytest.mark.journey
def test_a_request_that_times_out_is_sent_again_and_starts_one_run(tmp_path):
    with busy_airflow() as (address, bodies):
        settings = new_settings(tmp_path, airflow_url=address)
        make_secrets(settings)
        hasty = AirflowApi(settings, timeout=TIMEOUT_SECONDS)
        with (
            hasty as api,
            pytest.raises(StackError, match="does not answer: timed out"),
        ):
            api.last_runs("ingest")
        patient = AirflowApi(settings, timeout=TIMEOUT_SECONDS, patience=30)
        with patient as api:
            assert api.last_runs("ingest") == []
            api.pool("tables", 1)
            run = api.trigger("train", {"reason": "first"})
    runs = [
        body["dag_run_id"] for path, body in bodies if path.endswith("train/dagRuns")
    ]
    assert runs == [run, run]
    closed = AirflowApi(settings, timeout=TIMEOUT_SECONDS, patience=1)
    with closed as api, pytest.raises(StackError, match="does not answer"):
        api.last_runs("ingest")


@contextmanager
def guarded_airflow(tokens, forbidden=()):
    """An Airflow that knows one user and takes these tokens; a refusal repeats what it was sent."""
    logins = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            status, answer = 200, {"dag_runs": []}
            if self.path == "/auth/token":
                logins.append(json.loads(body))
                status = 422 if "odd" in body else 401
                answer = {"detail": body}
                if logins[-1] == {"username": "team", "password": SECRET}:
                    status, answer = 201, {"access_token": tokens[0]}
            elif token not in tokens:
                status, answer = 401, {"detail": token}
            elif token in forbidden:
                status, answer = 403, {"detail": token}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = answer  # noqa: N815
        do_POST = answer  # noqa: N815

        def log_message(self, *_):
            pass

    with listening(Handler) as address:
        yield address, logins


def settings_of(home, address, **login):
    """Settings of a home without a stack, for an Airflow of a team."""
    return new_settings(home / "none", airflow_url=address, **login)


def test_a_login_to_an_airflow_of_a_team_is_user_and_password_or_a_token(tmp_path):
    with guarded_airflow(["t1"]) as (address, logins):
        login = {"airflow_user": "team", "airflow_password": SECRET}
        with AirflowApi(settings_of(tmp_path, address, **login)) as api:
            assert api.last_runs("ingest") == []
        assert len(logins) == 1
        with AirflowApi(settings_of(tmp_path, address, airflow_token="t1")) as api:
            assert api.last_runs("ingest") == []
        assert len(logins) == 1


def test_a_token_that_has_expired_is_asked_for_anew_once(tmp_path):
    tokens = ["t1"]
    with guarded_airflow(tokens) as (address, logins):
        login = {"airflow_user": "team", "airflow_password": SECRET}
        with AirflowApi(settings_of(tmp_path, address, **login)) as api:
            api.last_runs("ingest")
            tokens[:] = ["t2"]
            assert api.last_runs("ingest") == []
            assert len(logins) == 2
        tokens[:] = ["t3"]
        login["airflow_token"] = "t2"
        with AirflowApi(settings_of(tmp_path, address, **login)) as api:
            assert api.last_runs("ingest") == []
        assert len(logins) == 3


@pytest.mark.parametrize(
    ("login", "message"),
    [
        ({"airflow_user": "ann", "airflow_password": SECRET}, r"user ann \(401\)"),
        ({"airflow_user": "odd", "airflow_password": SECRET}, r"user odd \(422\)"),
        ({"airflow_token": SECRET}, r"the token \(401\)"),
        ({"airflow_token": "narrow"}, r"the token \(403\)"),
    ],
)
def test_a_refused_login_is_one_line_with_the_remedy_and_without_a_secret(
    tmp_path, login, message
):
    with guarded_airflow(["narrow"], ["narrow"]) as (address, _):
        settings = settings_of(tmp_path, address, **login)
        expected = f"^Airflow at {address} refused {message}: set GYRE_AIRFLOW_USER and"
        with (
            AirflowApi(settings) as api,
            pytest.raises(StackError, match=expected) as error,
        ):
            api.last_runs("ingest")
    for text in (str(error.value), repr(settings), settings.model_dump_json()):
        assert SECRET not in text
        assert "narrow" not in text
    assert "\n" not in str(error.value)
    with pytest.raises(StackError, match="gyre up"):
        AirflowApi(settings_of(tmp_path, address))


def test_a_login_is_read_from_the_environment_or_from_files_and_is_not_printed(
    tmp_path,
):
    (tmp_path / "gyre_airflow_password").write_text(f"{SECRET}\n")
    (tmp_path / "gyre_airflow_token").write_text("first-token")
    variables = {
        "GYRE_HOME": str(tmp_path / "home"),
        "GYRE_SECRETS_DIR": str(tmp_path),
        "GYRE_AIRFLOW_URL": "http://airflow",
        "GYRE_AIRFLOW_TOKEN": "second-token",
    }
    code = """if True:
        from core.settings import load_settings
        settings = load_settings()
        password = settings.airflow_password.get_secret_value()
        print(password, settings.airflow_token.get_secret_value())
    """
    environment = os.environ | variables
    command = [sys.executable, "-c", code]
    output = subprocess.check_output(command, env=environment, cwd=CLONE, text=True)
    assert output == f"{SECRET} second-token\n"
    output = subprocess.check_output([BIN / "gyre", "env"], env=environment, text=True)
    assert "GYRE_AIRFLOW_URL" in output
    assert "second-token" not in output
