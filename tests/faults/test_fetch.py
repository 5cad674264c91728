"""A fetch of a version that is killed or hangs."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import pytest

from tests.conftest import unused_port
from tests.faults.conftest import workers
from tests.serving.load import under_load


def fetches(process: Any) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "serving.fetch" in " ".join(command_of(child))]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_fetch_that_dies_or_hangs_costs_no_prediction(rig: Any, served: Any, how: int) -> None:
    """26, 29: the old version answers; the next try is whole."""
    version = rig.register(0.3).version
    with rig.serving(home=rig.home_beside(), serving_port=unused_port()) as (client, process):
        rig.known_to_be_ready(client)
        with under_load(client, 1) as answers:
            rig.promote(version)
            rig.wait_until("a fetch", lambda: fetches(process))
            for child in fetches(process):
                os.kill(child.pid, how)
            before = len(answers)
            rig.wait_until("answers meanwhile", lambda: len(answers) > before + 50)
            if how == signal.SIGSTOP:
                assert {a.version for a in answers} == {served.first}
                for child in fetches(process):
                    child.kill()
            rig.answers_as(client, version, 30)
        assert {a.status for a in answers} == {200}
        (worker,) = workers(process)
        assert worker.is_running()
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)
