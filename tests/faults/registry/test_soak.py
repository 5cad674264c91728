"""Minutes of requests while versions take turns in production."""

import time

import pytest

from tests.conftest import wait_until
from tests.faults.conftest import second_server, workers
from tests.support.serving.load import under_load

PROMOTIONS = 60
TURN = 5.0
"""Seconds that a version answers; how soon it does so, test_swap.py promises."""
WARM = 0.2
FLAT = 0.05
"""Share of the time that memory may grow in, and by which it may move afterwards."""


@pytest.mark.nightly
def test_sixty_promotions_under_load_fail_no_request_and_memory_stays_flat(rig, served):
    """5: once a version answers, no other does until the next promotion."""
    turns = []
    memory = []
    with second_server(rig) as (client, process):
        rig.answers_as(client, served.first)
        (worker,) = workers(process)
        with under_load(client) as answers:
            for number in range(PROMOTIONS):
                version = (served.second, served.first)[number % 2]
                rig.promote(version)
                rig.answers_as(client, version)
                answered = time.monotonic()
                wait_until("the next turn", lambda: time.monotonic() > answered + TURN)  # noqa: B023
                turns.append((version, answered, time.monotonic()))
                # Others come and go, who share pages.
                memory.append(worker.memory_full_info().uss)
    assert {answer.status for answer in answers} == {200}
    for version, start, end in turns:
        during = [
            answer for answer in answers if start < answer.asked and answer.at < end
        ]
        assert {answer.version for answer in during} == {version}
    warm = memory[int(WARM * PROMOTIONS) :]
    assert max(abs(value / warm[0] - 1) for value in warm) < FLAT, f"{memory}"
    rig.answers_as(served.client, served.first)
