"""Events while a worker, Redis or the disk fails."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

from tests.conftest import unused_port
from tests.serving.test_events import (  # noqa: F401  (a fixture among them)
    NEW,
    ONLINE,
    URL,
    features,
    ingested,
    order,
    raw,
)

if TYPE_CHECKING:
    from tests.serving.conftest import Rig, Served


def test_acknowledged_events_of_a_killed_worker_land_once(rig: Rig, served: Served) -> None:
    """The one that dies is another worker than the one that answers on."""
    with rig.serving(home=rig.home_beside(), serving_port=unused_port()) as (
        client,
        process,
    ):
        sent = [client.post(URL, json=order(400 + n, NEW + 4)).json() for n in range(5)]
        process.kill()
    assert [answer["logged"] for answer in sent] == [True] * 5
    assert served.client.post(URL, json=order(405, NEW + 4)).json() == ONLINE
    rig.predict(served.client, NEW + 4)
    assert rig.rows()[-1]["features"]["lifetime_orders"] == 6  # the files of all workers are read
    before = len(list(rig.settings.events.glob("orders-*.jsonl")))
    for _ in range(2):
        ingested(rig)
        assert [n for n in raw(rig) if 400 <= n < 500] == [400, 401, 402, 403, 404, 405]
    assert len(list(rig.settings.events.glob("orders-*.jsonl"))) < before
    rig.predict(served.client, NEW + 4)
    assert rig.rows()[-1]["features"]["lifetime_orders"] == 6


def test_without_redis_events_are_accepted_and_the_next_ingest_brings_them_online(
    rig: Rig,
    served: Served,
    features: Any,  # noqa: F811
) -> None:
    assert rig.redis
    rig.redis.kill()
    rig.redis.wait()
    try:
        start = time.perf_counter()
        answer = served.client.post(URL, json=order(500, NEW + 5))
        assert time.perf_counter() < start + 3
        assert answer.json() == ONLINE | {"online": False}
    finally:
        rig.start_redis()
    rig.known_to_be_ready(served.client)
    # Ready all along if Redis was back before the second ping: then the circuit may be open yet.
    online = lambda: rig.predict(served.client).json()["features_from"] == "online"  # noqa: E731
    rig.wait_until("features from Redis", online)
    assert features(NEW + 5) is None
    ingested(rig)
    assert features(NEW + 5)["lifetime_orders"] == 1
    assert 'outcome="on_file"} 1.0' in served.client.get("/metrics").text
    assert served.client.post(URL, json=order(501, NEW + 5)).json() == ONLINE


def test_events_that_cannot_be_written_are_not_accepted(rig: Rig, served: Served) -> None:
    """A folder that is a file stands for a disk that takes nothing."""
    home = rig.folder / "full"
    shutil.copytree(rig.settings.home / "feast", home / "feast")
    (home / "serving").mkdir()
    (home / "serving" / "events").write_text("")
    with rig.serving(home=home, serving_port=unused_port()) as (client, _):
        answer = client.post(URL, json=order(600, 1))
        assert answer.status_code == 503
        assert "not on file" in answer.json()["detail"]
