"""More requests than a worker can bear."""

from __future__ import annotations

from collections import Counter
from typing import Any

from serving.scorer import MAX_REQUESTS
from tests.conftest import unused_port
from tests.serving.flood import REFUSED, flood

BEARABLE, ROUNDS, SECONDS, AT_ONCE = 64, 6, 2.0, 0.5


def test_three_times_what_it_bears_is_answered_or_refused_at_once(rig: Any, served: Any) -> None:
    """11: the best throughput goes on; who is too many is told so, and the next one answered.

    The two loads take turns: what else the machine does falls on both.
    """
    with rig.serving(home=rig.home_beside(), serving_port=unused_port()) as (client, _):
        rig.known_to_be_ready(client)
        port = client.base_url.port
        best, statuses, refused = Counter[int](), Counter[int](), list[float]()
        for _round in range(ROUNDS):
            best.update(flood(port, BEARABLE, SECONDS).statuses)
            overloaded = flood(port, 3 * MAX_REQUESTS, SECONDS)
            statuses.update(overloaded.statuses)
            refused += overloaded.durations_of(REFUSED)
        assert set(best) == {200}
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 0.8 * best[200]
        assert sorted(refused)[len(refused) // 2] < AT_ONCE
        assert client.get("/health/ready").status_code == 200
        assert rig.predict(client).json()["features_from"] == "online"
        assert f"gyre_overloaded_total {float(len(refused))}" in client.get("/metrics").text
