"""A fetch of a version that is killed or hangs."""

import signal
from contextlib import suppress

import psutil

from tests.conftest import wait_until
from tests.faults.conftest import more, second_server
from tests.support.serving.load import under_load


def fetches(process):
    """Processes that fetch a version; one that has ended meanwhile is none."""
    children = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "serving.versions.fetch" in " ".join(child.cmdline()):
                children.append(child)
    return children


def test_a_fetch_that_dies_or_hangs_fails_no_prediction(rig, served):
    """26, 29: the old version answers; the next try is whole."""
    with second_server(rig) as (client, process):
        before = served.first
        with under_load(client, 1) as answers:
            for how in (signal.SIGKILL, signal.SIGSTOP):
                version = rig.register(0.3).version
                rig.promote(version)
                wait_until("a fetch", lambda: fetches(process))
                for child in fetches(process):
                    child.send_signal(how)
                count = len(answers)
                more(answers)
                if how == signal.SIGSTOP:
                    assert {answer.version for answer in answers[count:]} == {before}
                    for child in fetches(process):
                        child.kill()
                rig.answers_as(client, version)
                before = version
        assert {answer.status for answer in answers} == {200}
    rig.swap(served.client, served.first)
