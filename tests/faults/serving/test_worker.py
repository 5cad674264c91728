"""Workers that are killed, and their parent."""

import fcntl
from collections import Counter

import psutil

from tests.conftest import unused_port, wait_until
from tests.faults.conftest import second_server, workers
from tests.serving.conftest import counted
from tests.support.serving.load import FAILED, under_load

CONNECTIONS = 3


def failures(answers):
    return sum(answer.status == FAILED for answer in answers)


def predictions(client):
    """Predictions of all workers, those that are gone included."""
    return counted(client, "gyre_predictions_total{")


def test_a_killed_worker_fails_only_requests_in_flight_and_loses_no_acknowledged_row(
    rig, served
):
    """9: SIGKILL under load; another worker takes its place at the same port and logs on."""
    with second_server(rig) as (client, process):
        (killed,) = workers(process)
        with under_load(client, CONNECTIONS, pause=0) as answers:
            wait_until("requests", lambda: predictions(client) > 100)
            before = predictions(client)
            killed.kill()
            killed.wait()
            until = len(answers) + 50
            wait_until(
                "what comes after",
                lambda: failures(answers) == CONNECTIONS or len(answers) > until,
            )
        acknowledged = [a.body["request_id"] for a in answers if a.status == 200]
        assert {a.status for a in answers} <= {200, FAILED}
        assert failures(answers) <= CONNECTIONS, "more than were in flight"
        logged = Counter(row["request_id"] for row in rig.rows())
        assert {logged[request_id] for request_id in acknowledged} == {1}
        left = max(rig.log.glob(f"predictions-{killed.pid}-*.jsonl"))
        with left.open("rb") as file:
            # Free: the file is closed for good.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        written = left.read_bytes()
        rig.known_to_be_ready(client)
        assert rig.row_of(rig.predict(client))
        assert left.read_bytes() == written
        assert predictions(client) > before, "what the killed one counted is lost"


def test_workers_end_with_their_parent_and_leave_the_port_free(rig, served):
    """9, 20: the process that started them gets SIGKILL; the next counts from nothing."""
    place = {"home": rig.second_home(), "serving_port": unused_port()}
    with rig.serving(**place, serving_workers=2) as (client, process):
        rig.known_to_be_ready(client)
        rig.predict(client)
        orphans = workers(process)
        assert len(orphans) == 2
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(orphans, timeout=600)
        assert alive == []
    with rig.serving(**place) as (client, _):
        rig.known_to_be_ready(client)
        assert 'route="/predict"' not in client.get("/metrics").text
        assert rig.predict(client).json()["logged"]
