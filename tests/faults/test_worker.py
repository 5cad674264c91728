"""A serving worker that is killed."""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from typing import Any

from tests.conftest import unused_port
from tests.serving.load import FAILED, under_load

CONNECTIONS = 3


def test_a_killed_worker_fails_what_was_in_flight_and_loses_no_acknowledged_row(
    rig: Any, served: Any
) -> None:
    """9: SIGKILL under load; the next worker of the same folder answers and logs on."""
    port = unused_port()
    with rig.serving(serving_port=port) as (client, process):
        rig.known_to_be_ready(client)
        with under_load(client, CONNECTIONS) as answers:
            time.sleep(1.5)
            process.kill()
            process.wait()
    acknowledged = [a.body["request_id"] for a in answers if a.status == 200]
    assert Counter(a.status for a in answers) == {200: len(acknowledged), FAILED: CONNECTIONS}
    assert len(acknowledged) > 50
    logged = Counter(row["request_id"] for row in rig.rows())
    assert {logged[request_id] for request_id in acknowledged} == {1}
    (left,) = (rig.settings.home / "serving" / "log").glob(f"predictions-{process.pid}-*.jsonl")
    with left.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free: the file is closed for good
    written = left.read_bytes()
    with rig.serving(serving_port=port) as (client, _):
        rig.known_to_be_ready(client)
        answer = rig.predict(client).json()
        assert answer["logged"]
        assert left.read_bytes() == written
        assert answer["request_id"] in {row["request_id"] for row in rig.rows()}
