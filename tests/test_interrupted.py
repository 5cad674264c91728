"""A test run that is stopped takes its servers with it."""

import os
import subprocess
import sys

import psutil

from core.project import CLONE
from tests.conftest import wait_until

PROGRAM = """
import time
from pathlib import Path

from tests.conftest import redis_server, unused_port


def test_a_server_starts(tmp_path):
    with redis_server(unused_port(), tmp_path):
        Path("up").touch()
        time.sleep(600)
"""


def test_a_killed_run_leaves_no_server(tmp_path):
    (tmp_path / "test_of_a_server.py").write_text(PROGRAM)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(CLONE), "PYTEST_ADDOPTS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until("the server", (tmp_path / "up").exists, process=run)
    (server,) = psutil.Process(run.pid).children()
    run.kill()
    run.wait()
    wait_until("the end of the server", lambda: not server.is_running())
