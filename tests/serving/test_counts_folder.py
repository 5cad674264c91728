"""The folder in which workers count goes with its server, or with the next one."""

import time
from pathlib import Path

import psutil
import pytest

from serving.__main__ import COUNTS, NEW_SECONDS
from tests.conftest import wait_until


def own_folder(process):
    """Return the folder that a server holds open."""
    links = Path(f"/proc/{process.pid}/fd").iterdir()
    (folder,) = {link.readlink() for link in links if COUNTS in f"{link.readlink()}"}
    return folder


@pytest.mark.journey
def test_a_killed_server_leaves_a_folder_that_the_next_one_removes(rig, served):
    home = rig.second_home()
    with rig.serving(home=home) as (_, process):
        folder = own_folder(process)
        children = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        wait_until("workers", lambda: not any(child.is_running() for child in children))
    assert folder.exists()
    time.sleep(NEW_SECONDS)
    with rig.serving(home=home) as (client, process):
        assert not folder.exists()
        # That of a server that runs stays.
        assert "gyre_requests" in served.client.get("/metrics").text
        assert client.get("/metrics").status_code == 200
