"""More requests than a worker can bear."""

from __future__ import annotations

from collections import Counter

import pytest

from serving.scoring.scorer import MAX_REQUESTS
from tests.conftest import at_most
from tests.faults.conftest import second_server
from tests.support.serving.flood import REFUSED, flood

TOO_MANY = 3 * MAX_REQUESTS
BEARABLE = 64
ROUNDS = 6
SECONDS = 2.0


@pytest.fixture
def client(rig, served):
    """Of a server that nobody else asks."""
    with second_server(rig) as (client, _):
        yield client


@pytest.mark.timed
def test_requests_beyond_the_limit_are_refused_at_once_and_the_next_is_answered(
    rig, client
):
    """11: all are answered or refused, the refused are counted."""
    overloaded = flood(client.base_url.port, TOO_MANY, SECONDS)
    assert set(overloaded.statuses) == {200, 429}
    refused = sorted(overloaded.durations_of(REFUSED))
    assert refused[len(refused) // 2] < at_most(0.5)
    rig.known_to_be_ready(client)
    assert rig.predict_online(client).status_code == 200
    count = f"gyre_overloaded_total {float(len(refused))}"
    assert count in client.get("/metrics").text


@pytest.mark.nightly
def test_throughput_under_overload_stays_near_its_best(client):
    """11: the two loads take turns: what else the machine does falls on both."""
    port = client.base_url.port
    best = Counter()
    overloaded = Counter()
    for _ in range(ROUNDS):
        best.update(flood(port, BEARABLE, SECONDS).statuses)
        overloaded.update(flood(port, TOO_MANY, SECONDS).statuses)
    assert set(best) == {200}
    assert overloaded[200] >= 0.8 * best[200]
