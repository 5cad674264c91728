"""A fetch of a version that is killed or hangs."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil

from tests.conftest import unused_port
from tests.faults.conftest import workers
from tests.serving.load import under_load


def fetches(process: Any) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [
        child for child in children if "serving.fetch" in " ".join(command_of(child))
    ]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_fetch_that_dies_or_hangs_costs_no_prediction(rig: Any, served: Any) -> None:
    """26, 29: the old version answers; the next try is whole."""
    with rig.serving(home=rig.home_beside(), serving_port=unused_port()) as (
        client,
        process,
    ):
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


def test_a_version_that_crashes_its_fetch_is_refused_and_not_tried_again(
    rig: Any, served: Any
) -> None:
    version = rig.register(0.4).version
    rig.promote(version)
    rig.wait_until("a fetch", lambda: fetches(served.process))
    for child in fetches(served.process):
        os.kill(child.pid, signal.SIGSEGV)

    def refused() -> dict[str, str]:
        models = served.client.get("/status").json()["models"]
        reasons: dict[str, str] = models[rig.spec.name]["refused"]
        return reasons

    rig.wait_until("a refusal", lambda: "SIGSEGV" in refused().get(version, ""))
    time.sleep(3)
    assert not fetches(served.process)
    assert rig.predict(served.client).json()["model_version"] == served.first
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)
