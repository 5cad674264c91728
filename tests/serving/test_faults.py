"""Redis that hangs or dies, a worker that is killed: made for real."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import httpx

from tests.conftest import unused_port


def timed(client: httpx.Client, key: int) -> tuple[float, dict[str, Any]]:
    start = time.perf_counter()
    answer = client.post("/predict", json={"customer_id": key})
    assert answer.status_code == 200
    return time.perf_counter() - start, answer.json()


def test_redis_that_hangs_is_replaced_by_the_last_values_then_defaults(
    rig: Any, served: Any
) -> None:
    client = served.client
    assert timed(client, 4)[1]["features_from"] == "online"
    os.kill(rig.redis.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        took, answer = timed(client, 4)
        assert answer["features_from"] == "cache"
        assert took < 0.05 + 0.05
        took, answer = timed(client, 555)
        assert answer["features_from"] == "defaults"
        assert took < 0.05
        not_ready = lambda: client.get("/health/ready").status_code == 503  # noqa: E731
        rig.wait_until("not ready", not_ready, 2)
        assert time.monotonic() - stopped < 2
        assert "Redis" in client.get("/health/ready").json()["resources"]["redis"]["detail"]
        rows = {row["request_id"]: row for row in rig.rows()}
        assert rows[answer["request_id"]]["features_from"] == "defaults"
        assert rows[answer["request_id"]]["features"] == rig.features
        times = [timed(client, 4)[0] for _ in range(50)]
        assert sorted(times)[45] < 0.05
    finally:
        os.kill(rig.redis.pid, signal.SIGCONT)
    rig.known_to_be_ready(client, 5)
    assert timed(client, 4)[1]["features_from"] == "online"


def test_a_killed_worker_loses_no_acknowledged_row(rig: Any, served: Any) -> None:
    acknowledged: list[str] = []
    failed: list[str] = []
    with rig.serving(serving_port=unused_port()) as (client, process):
        rig.known_to_be_ready(client)

        def load(n: int) -> None:
            with httpx.Client(base_url=client.base_url) as own:
                try:
                    while True:
                        answer = own.post("/predict", json={"customer_id": n + 1})
                        acknowledged.append(answer.json()["request_id"])
                except httpx.HTTPError as exc:
                    failed.append(str(exc))

        threads = [threading.Thread(target=load, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        process.kill()
        for thread in threads:
            thread.join()
    assert len(acknowledged) > 50
    assert len(failed) == 3
    assert set(acknowledged) <= {row["request_id"] for row in rig.rows()}
    assert served.client.get("/health/live").status_code == 200
