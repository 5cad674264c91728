"""A fetch of a version that is killed or hangs."""

from __future__ import annotations

import os
import signal

import psutil

from tests.faults.conftest import second_server, workers
from tests.serving.load import under_load


def fetches(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [
        child for child in children if "serving.fetch" in " ".join(command_of(child))
    ]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_fetch_that_dies_or_hangs_costs_no_prediction(rig, served):
    """26, 29: the old version answers; the next try is whole."""
    with second_server(rig) as (client, process):
        rig.answers_as(client, served.first)
        before = served.first
        with under_load(client, 1) as answers:
            for how in (signal.SIGKILL, signal.SIGSTOP):
                version = rig.register(0.3).version
                rig.promote(version)
                rig.wait_until("a fetch", lambda: fetches(process))
                for child in fetches(process):
                    os.kill(child.pid, how)
                seen = len(answers)
                rig.wait_until(
                    "answers meanwhile", lambda n=seen: len(answers) > n + 50
                )
                if how == signal.SIGSTOP:
                    assert {answer.version for answer in answers[seen:]} == {before}
                    for child in fetches(process):
                        child.kill()
                rig.answers_as(client, version)
                before = version
        assert {answer.status for answer in answers} == {200}
        (worker,) = workers(process)
        assert worker.is_running()
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)
