"""Airflow's API on a busy machine: a program that answers late, over real sockets."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core.errors import StackError
from stack.airflow_api import AirflowApi
from stack.environment import make_secrets
from tests.conftest import new_settings

LATE_SECONDS = 1.0
TIMEOUT_SECONDS = 0.3


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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


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
