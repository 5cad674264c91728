"""Workers that are killed, and their keeper."""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from typing import Any

import psutil

from tests.conftest import unused_port
from tests.serving.load import FAILED, under_load

CONNECTIONS = 3


def workers(process: Any) -> list[psutil.Process]:
    """Those that answer, of all that `python -m serving` started."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_a_killed_worker_fails_what_was_in_flight_and_loses_no_acknowledged_row(
    rig: Any, served: Any
) -> None:
    """9: SIGKILL under load; another worker takes its place at the same port and logs on."""
    with rig.serving(serving_port=unused_port()) as (client, process):
        rig.known_to_be_ready(client)
        (killed,) = workers(process)
        with under_load(client, CONNECTIONS) as answers:
            time.sleep(1.5)
            killed.kill()
            time.sleep(0.2)
        acknowledged = [a.body["request_id"] for a in answers if a.status == 200]
        assert Counter(a.status for a in answers) == {200: len(acknowledged), FAILED: CONNECTIONS}
        assert len(acknowledged) > 50
        logged = Counter(row["request_id"] for row in rig.rows())
        assert {logged[request_id] for request_id in acknowledged} == {1}
        (left,) = (rig.settings.home / "serving" / "log").glob(f"predictions-{killed.pid}-*.jsonl")
        with left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free: the file is closed for good
        written = left.read_bytes()
        rig.known_to_be_ready(client)
        answer = rig.predict(client).json()
        assert answer["logged"]
        assert left.read_bytes() == written
        assert answer["request_id"] in {row["request_id"] for row in rig.rows()}
        text = client.get("/metrics").text
        counted = sum(
            float(line.split()[-1])
            for line in text.splitlines()
            if line.startswith("gyre_predictions_total{")
        )
        # Those of the killed one included, but for its last hundredths of a second.
        assert counted > 0.9 * len(acknowledged)


def test_workers_end_with_their_parent_so_that_the_next_finds_the_port_free(
    rig: Any, served: Any
) -> None:
    """9, 20: the process that started them gets SIGKILL."""
    port = unused_port()
    with rig.serving(serving_port=port, serving_workers=2) as (client, process):
        rig.known_to_be_ready(client)
        orphans = workers(process)
        assert len(orphans) == 2
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(orphans, timeout=15)
        assert alive == []
    with rig.serving(serving_port=port) as (client, _):
        rig.known_to_be_ready(client)
        assert rig.predict(client).json()["logged"]
