"""A test run that is stopped takes its servers with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from core.settings import CLONE
from tests.conftest import wait_until

PROGRAM = """
import time
from pathlib import Path

from tests.conftest import redis_server, unused_port


def test_with_a_server(tmp_path):
    with redis_server(unused_port(), tmp_path):
        Path("up").touch()
        time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running(tmp_path, number):
    (tmp_path / "test_of_a_server.py").write_text(PROGRAM)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    # A shell starts what runs in its background with SIGINT ignored.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "pytest"]
    run = subprocess.Popen(
        [*command, "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(CLONE), "PYTEST_ADDOPTS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until("the server", (tmp_path / "up").exists, process=run)
    (server,) = psutil.Process(run.pid).children()
    run.send_signal(number)
    run.wait()
    wait_until("the end of the server", lambda: not server.is_running())
