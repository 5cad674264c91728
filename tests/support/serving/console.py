"""A console of its own."""

from contextlib import contextmanager

import httpx

from stack.environment import process_environment
from tests.conftest import answers, running, unused_port, wait_until
from tests.support.serving.constants import module_command
from tests.support.tools.preloaded import commands_folder

WATCH = "monitoring.console.alerts.WATCH_SECONDS"
SAMPLE = "monitoring.console.panels.minutes.SAMPLE_SECONDS"
PAGES = "monitoring.console.status.PAGES_SECONDS"
"""Intervals that a test may shorten."""


@contextmanager
def console(rig, python=None, constants=None, **changed):
    """Run it by the preloaded python, which takes no signal other than SIGKILL, or by another.

    constants: Other values of constants of the product, by their paths. changed: Of the settings.
    """
    changes = {"console_port": unused_port()} | changed
    settings = rig.settings.model_copy(update=changes)
    address = settings.console_address
    python = python or commands_folder() / "python"
    command = module_command(python, "monitoring.console", constants or {})
    log = rig.folder / "console.log"
    with (
        running(command, log, **process_environment(settings)) as process,
        httpx.Client(base_url=address, timeout=600) as client,
    ):
        wait_until("console", lambda: answers(f"{address}/health/live"))
        yield client, process
