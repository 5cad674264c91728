"""Minutes of requests while versions take turns in production."""

import time

import pytest

from tests.conftest import wait_until
from tests.faults.conftest import second_server, workers
from tests.serving.load import under_load

PROMOTIONS = 60
APART = 8.0
SWAPPED = 5.0
"""Seconds within which a promotion is served, and for which the version before may answer on."""
WARM = 0.2
FLAT = 0.05
"""Share of the time that memory may grow in, and by which it may move afterwards."""


@pytest.mark.nightly
def test_sixty_promotions_under_load_fail_no_request_and_memory_stays_flat(rig, served):
    """5: each answer is of the version in production, or of the one before for 5 s."""
    turns = []
    memory = []
    with second_server(rig) as (client, process):
        rig.answers_as(client, served.first)
        (worker,) = workers(process)
        with under_load(client) as answers:
            for number in range(PROMOTIONS):
                version = (served.second, served.first)[number % 2]
                rig.promote(version)
                promoted = time.monotonic()
                rig.answers_as(client, version, SWAPPED)
                wait_until("the next turn", lambda: time.monotonic() > promoted + APART)  # noqa: B023
                turns.append((version, promoted + SWAPPED, time.monotonic()))
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
