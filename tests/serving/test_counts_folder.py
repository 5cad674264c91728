"""The folder in which workers count goes with its server, or with the next one."""

import tempfile
import time
from pathlib import Path

import psutil
import pytest

from serving.__main__ import COUNTS, NEW_SECONDS
from tests.conftest import wait_until


def folders(process):
    """Return all folders where a server has its own."""
    root = psutil.Process(process.pid).environ().get("TMPDIR", tempfile.gettempdir())
    return {*Path(root).glob(f"{COUNTS}*")}


@pytest.mark.journey
def test_a_killed_server_leaves_a_folder_that_the_next_one_removes(rig, served):
    before = folders(served.process)
    home = rig.second_home()
    with rig.serving(home=home) as (_, process):
        (folder,) = folders(process) - before
        children = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        wait_until("workers", lambda: not any(child.is_running() for child in children))
    assert folder.exists()
    time.sleep(NEW_SECONDS)
    with rig.serving(home=home) as (client, process):
        assert not folder.exists()
        assert before <= folders(process)  # those of servers that run
        assert client.get("/metrics").status_code == 200
