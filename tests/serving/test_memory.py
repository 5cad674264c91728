"""A worker gives memory back after large bodies, whatever is in them."""

import json
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.conftest import wait_until
from tests.support.serving.refusals import PATHS

MOST_BYTES = 80_000_000
"""By which a worker may have grown. Before it gave memory back it grew by 220 MB."""
BODIES = (
    "[" * 400_000 + "]" * 400_000,
    json.dumps({f"k{number}": "v" * 20 for number in range(30_000)}),
    json.dumps([[1.5] * 100] * 1_500),
    json.dumps("é" * 900_000),
    json.dumps([{"request_id": "x" * 50, "actual": 1}] * 9_000),
    f"[{','.join(['{}'] * 300_000)}]",
)


@pytest.mark.journey
def test_a_worker_gives_memory_back_after_large_odd_bodies(rig, served):
    with rig.serving(home=rig.second_home()) as (client, process):
        rig.known_to_be_ready(client)
        (worker,) = (
            child
            for child in psutil.Process(process.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        )
        before = worker.memory_info().rss

        def send(_):
            for body in BODIES:
                for path in ("/feedback", *PATHS.values()):
                    assert client.post(path, content=body.encode()).status_code < 500

        for _ in range(2):
            with ThreadPoolExecutor(8) as threads:
                [*threads.map(send, range(8))]
        # It is given back once a second.
        wait_until(
            "memory", lambda: worker.memory_info().rss < before + MOST_BYTES, seconds=30
        )
