"""A console of its own."""

import sys
from contextlib import contextmanager

import httpx

from stack.environment import process_environment
from tests.conftest import answers, running, unused_port, wait_until


@contextmanager
def console(rig, **changed):
    changes = {"console_port": unused_port()} | changed
    settings = rig.settings.model_copy(update=changes)
    address = settings.console_address
    command = [sys.executable, "-m", "monitoring.console"]
    log = rig.folder / "console.log"
    with (
        running(command, log, **process_environment(settings)) as process,
        httpx.Client(base_url=address, timeout=600) as client,
    ):
        wait_until("console", lambda: answers(f"{address}/health/live"))
        yield client, process
