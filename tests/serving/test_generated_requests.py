"""Requests made up from the server's own OpenAPI document, while others never end theirs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

from serving.edge import BODY_SECONDS
from serving.http_connection import HEAD_BYTES, HEAD_SECONDS
from stack.settings import PROJECT

SKIPPED = "^/events/"
"""What is made up would change the features that other tests look at."""


def test_generated_requests_get_no_5xx_and_nothing_the_document_does_not_tell(
    rig: Any, served: Any
) -> None:
    slow = {
        "head": b"GET /health/live HTTP/1.1\r\nhost: gyre\r\nx-slow: ", "nothing": b"",
        "body": b"POST /v2/models/churn-predictor/infer HTTP/1.1\r\nhost: gyre\r\n"
                b"content-length: 100\r\n\r\n{",
    }  # fmt: skip
    url, start = served.client.base_url, time.monotonic()
    with ExitStack() as opened:
        sockets = {}
        for name, sent in slow.items():
            sockets[name] = opened.enter_context(socket.create_connection((url.host, url.port)))
            sockets[name].sendall(sent)
        command = [sys.executable, "-m", "benchmarks.generated_requests", "1000"]
        command += ["--address", f"http://{url.host}:{url.port}", "--skip", SKIPPED]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False, text=True)
        time.sleep(max(0.0, max(HEAD_SECONDS, BODY_SECONDS) + 1 - time.monotonic() + start))
        for name, waiting in sockets.items():
            waiting.settimeout(2)
            head, _, body = waiting.makefile("rb").read().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            assert set(json.loads(body)) == {"error" if name == "body" else "detail"}
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = {int(k): count for k, count in json.loads(done.stdout.splitlines()[-1]).items()}
    assert sum(statuses.values()) >= 1_000
    assert statuses[200] >= 100
    assert all(200 <= status < 500 for status in statuses)
    assert rig.predict(served.client).status_code == 200
    assert served.process.poll() is None


def test_heads_that_are_too_large_or_none_are_refused_and_leave_nothing(served: Any) -> None:
    url = served.client.base_url
    line = b"GET /health/live HTTP/1.1\r\nhost: gyre\r\n"
    for sent, status in (
        (line + b"x: " + b"a" * 4 * HEAD_BYTES, b"431"),
        (line + b"x: a\r\n" * HEAD_BYTES, b"431"),
        (b"GET /" + b"a" * 4 * HEAD_BYTES, b"431"),
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"POST /predict HTTP/1.1\r\nhost: gyre\r\ncontent-length: -1\r\n\r\n", b"400"),
        (line.replace(b"GET", b"PUT") + b"content-length: 5\r\n" * 2 + b"\r\n", b"400"),
    ):  # fmt: skip
        with socket.create_connection((url.host, url.port), timeout=5) as client:
            client.sendall(sent)
            head, _, body = client.recv(1_000).partition(b"\r\n\r\n")
        assert head.split()[1] == status
        assert json.loads(body)["detail"]
