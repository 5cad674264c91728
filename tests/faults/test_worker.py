"""Workers that are killed, and their parent."""

from __future__ import annotations

import fcntl
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from stack.environment import process_environment
from tests.conftest import running, unused_port, wait_until
from tests.faults.conftest import workers
from tests.serving.load import FAILED, Answered, under_load

if TYPE_CHECKING:
    import httpx

CONNECTIONS = 3


def failures(answers: list[Answered]) -> int:
    return sum(answer.status == FAILED for answer in answers)


def counted(client: httpx.Client) -> float:
    """Predictions of all workers, those that are gone included."""
    lines = client.get("/metrics").text.splitlines()
    found = (line for line in lines if line.startswith("gyre_predictions_total{"))
    return sum(float(line.split()[-1]) for line in found)


def test_a_killed_worker_fails_what_was_in_flight_and_loses_no_acknowledged_row(
    rig: Any, served: Any
) -> None:
    """9: SIGKILL under load; another worker takes its place at the same port and logs on."""
    with rig.serving(home=rig.home_beside(), serving_port=unused_port()) as (
        client,
        process,
    ):
        rig.known_to_be_ready(client)
        (killed,) = workers(process)
        with under_load(client, CONNECTIONS, pause=0) as answers:
            wait_until("requests", lambda: counted(client) > 100)
            before = counted(client)
            killed.kill()
            killed.wait()
            seen = len(answers)
            wait_until(
                "what comes after",
                lambda: failures(answers) == CONNECTIONS or len(answers) > seen + 50,
            )
        acknowledged = [a.body["request_id"] for a in answers if a.status == 200]
        assert {a.status for a in answers} <= {200, FAILED}
        assert failures(answers) <= CONNECTIONS, "more than were in flight"
        logged = Counter(row["request_id"] for row in rig.rows())
        assert {logged[request_id] for request_id in acknowledged} == {1}
        log = rig.settings.home / "serving" / "log"
        *_, left = sorted(log.glob(f"predictions-{killed.pid}-*.jsonl"))
        with left.open("rb") as file:
            fcntl.flock(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # free: the file is closed for good
        written = left.read_bytes()
        rig.known_to_be_ready(client)
        answer = rig.predict(client).json()
        assert answer["logged"]
        assert left.read_bytes() == written
        assert answer["request_id"] in {row["request_id"] for row in rig.rows()}
        assert counted(client) > before, "what the killed one counted is lost"


def test_workers_end_with_their_parent_so_that_the_next_finds_the_port_free(
    rig: Any, served: Any
) -> None:
    """9, 20: the process that started them gets SIGKILL; the next counts from nothing."""
    home, port = rig.home_beside(), unused_port()
    with rig.serving(home=home, serving_port=port, serving_workers=2) as (
        client,
        process,
    ):
        rig.known_to_be_ready(client)
        rig.predict(client)
        orphans = workers(process)
        assert len(orphans) == 2
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(orphans, timeout=600)
        assert alive == []
    with rig.serving(home=home, serving_port=port) as (client, process):
        rig.known_to_be_ready(client)
        assert 'route="/predict"' not in client.get("/metrics").text
        assert rig.predict(client).json()["logged"]
        (worker,) = workers(process)
        counts = Path(worker.environ()["PROMETHEUS_MULTIPROC_DIR"])
        assert counts.is_dir()
        process.terminate()
        assert process.wait(600) == 0
    assert not counts.exists()


def test_workers_end_whose_parent_died_while_they_started(rig: Any) -> None:
    """9, 20: they would hold the port for ever."""
    made = {
        "home": rig.folder / "short",
        "serving_port": unused_port(),
        "serving_workers": 2,
    }
    settings = rig.settings.model_copy(update=made)
    env = process_environment(settings)
    with running(
        [sys.executable, "-m", "serving"], rig.folder / "short.log", **env
    ) as process:
        wait_until("workers", lambda: len(workers(process)) == 2)
        orphans = workers(process)
    _, alive = psutil.wait_procs(orphans, timeout=600)
    for orphan in alive:
        orphan.kill()
    assert alive == []


def test_what_a_worker_held_that_was_killed_in_a_promotion_is_held_no_more(
    rig: Any, served: Any
) -> None:
    """9: `gyre_model_info`; nobody is left to set it to 0."""
    with rig.serving(home=rig.home_beside(), serving_port=unused_port()) as (
        client,
        process,
    ):
        rig.answers_as(client, served.first)
        wait_until("counts", lambda: "_model_info{" in client.get("/metrics").text)
        (killed,) = workers(process)
        killed.suspend()
        rig.promote(served.second)
        killed.kill()
        killed.wait()
        rig.answers_as(client, served.second)
        held = [
            line
            for line in client.get("/metrics").text.splitlines()
            if "_model_info{" in line
        ]
        (production,) = [
            x for x in held if 'role="production"' in x and x.endswith(" 1.0")
        ]
        assert f'version="{served.second}"' in production
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)
