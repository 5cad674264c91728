"""What the start page says first of a bad night: each fault as it is left behind, for real."""

from __future__ import annotations

import json
import re
import sys
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from feature_repo.broker import EventSchema, Stream
from mlflow_server.alerts import Alerts, DriftAlert
from mlflow_server.ledger import Ledger, LedgerRow
from monitoring.check import CheckResult
from monitoring.decision_log import store_checks, store_decision
from stack.environment import process_environment
from tests.conftest import running, unused_port, wait_until
from tests.console.year import decision_row, fill_dataset
from tests.faults.test_broken_model import other_inputs
from tests.faults.test_console import console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from core.settings import Settings

NAME = "customer_churn_model"
IMPATIENT = """
import runpy
from monitoring.console import alerts

alerts.EVENTS_SECONDS = 0.1
runpy.run_module("monitoring.console", run_name="__main__")
"""


@dataclass
class Night:
    """A healthy loop of its own beside the rig's serving and MLflow, and what befalls it."""

    rig: Any
    settings: Settings
    version: str
    consumer: ExitStack
    undo: ExitStack

    @property
    def now(self) -> datetime:
        return datetime.now(UTC)

    def promoted(
        self, sequence: int, before: str | None, to: str, who: str, why: str
    ) -> None:
        at = self.now - timedelta(hours=9 - sequence)
        row = LedgerRow(
            NAME, sequence, "production", 100, before, to, who, why, None, at, at
        )
        with closing(Ledger(self.settings)) as ledger:
            ledger.insert(row)

    def decided(self, version: str, verdict: str, action: str, words: str) -> None:
        row = decision_row(
            model=NAME,
            version=version,
            as_of=self.now,
            verdict=verdict,
            action=action,
            words=words,
        )
        store_decision(self.settings, row)

    def alerted(self, cause: str, content: str | DriftAlert) -> None:
        with closing(Alerts(self.settings)) as alerts:
            alerts.alert(NAME, cause, content, self.now - timedelta(hours=1))


@pytest.fixture(scope="module")
def consumer(rig: Any, served: Any) -> Iterator[ExitStack]:
    """What closes the rig's consumer."""
    with ExitStack() as opened:
        opened.enter_context(rig.consuming())
        yield opened


@pytest.fixture
def night(
    rig: Any, served: Any, consumer: ExitStack, tmp_path: Path
) -> Iterator[Night]:
    with ExitStack() as undo:
        own = rig.settings.model_copy(update={"home": tmp_path})
        made = Night(rig, own, served.first, consumer, undo)
        made.promoted(1, None, served.first, "test", "because")
        made.decided(served.first, "ok", "nothing", "no feature drifts")
        fill_dataset(own, "orders", made.now)
        yield made


def drifts(night: Night) -> None:
    drift = CheckResult(
        name="psi/total_orders_30d",
        kind="data_drift",
        status="bad",
        value=0.43,
        limit=0.25,
        words="total_orders_30d: PSI 0.43, at most 0.25",
        remedy="A retraining starts by itself.",
        link=f"/status/{NAME}?check=psi/total_orders_30d#history",
    )
    row = decision_row(
        model=NAME,
        version=night.version,
        as_of=night.now,
        verdict="bad",
        action="retrain",
        words=f"bad: {drift.words}; retrain",
        cause=f"drift of version {night.version}",
    )
    store_decision(night.settings, row)
    store_checks(night.settings, NAME, row.as_of, [drift])
    night.alerted(row.cause, row.words)


def stands_still(night: Night) -> None:
    fill_dataset(night.settings, "orders", night.now, late=6)


def dies(night: Night) -> None:
    night.consumer.close()


def is_refused(night: Night) -> None:
    rig, version = night.rig, night.rig.register(1.0, model=other_inputs()).version
    night.undo.callback(rig.promote, night.version)
    rig.promote(version)
    night.promoted(2, night.version, version, "ann", "it looks good")
    why = f"version {version} is refused: ValueError: Required inputs"
    night.alerted(
        f"version {version} is refused", f"version {night.version} answers; {why}"
    )


def harms(night: Night) -> None:
    why = "60 of 110 predictions failed"
    night.promoted(2, night.version, "9", "airflow", "weekly")
    night.decided("9", "bad", "rollback", why)
    night.promoted(3, "9", night.version, "monitor", why)
    message = f"version 9 did harm and was taken back: {why}"
    content = DriftAlert("predictions", "harm", "critical", None, night.now, message)
    night.alerted("harm of version 9 (ledger row 2)", content)


SAID = {
    harms: ("version 9 did harm and was taken back", "60 of 110", "gyre decide"),
    is_refused: ("Serving refuses version ", "Required inputs", "gyre rollback"),
    stands_still: (
        "features are not complete",
        "6 h, at most 2 h",
        "/dags/ingest/runs",
    ),
    drifts: (
        "total_orders_30d: PSI 0.43",
        "A retraining starts",
        "check=psi/total_orders_30d",
    ),
    fails_its_gates: ("refused: log_loss", "better_than_baseline", "model card"),
    fails: ("late: a request has waited", "No event is lost", "gyre logs consumer"),
    # Last: the consumer stays dead.
    dies: (
        "Events are not processed",
        "windows that end go online",
        "gyre logs consumer",
    ),
}


@contextmanager
def late_events(settings: Settings) -> Iterator[None]:
    """A dataset with a request that a consumer has read, and has not processed for an hour."""
    schema = EventSchema(dataset="late", columns={}, required=[], event_time="at")
    hour_ago = int((datetime.now(UTC) - timedelta(hours=1)).timestamp() * 1000)
    with (
        closing(Stream(settings, "test")) as stream,
        Redis.from_url(settings.redis_address) as redis,
    ):
        stream.declare(schema)
        redis.xadd("gyre:events:late", {"events": "[]"}, id=f"{hour_ago}-0")
        stream.read("late")
        yield
        redis.delete("gyre:events:late")
        redis.hdel("gyre:events", "late")


@contextmanager
def pages(night: Night) -> Iterator[httpx.Client]:
    with console(night.rig, home=night.settings.home, console_port=unused_port()) as (
        client,
        _,
    ):
        client.timeout = 300
        yield client


def problem_list(page: str) -> list[str]:
    return [
        unescape(each) for each in re.findall(r"<li.*?</li>", page, flags=re.DOTALL)
    ]


@pytest.mark.parametrize("fault", SAID, ids=lambda fault: fault.__name__)
def test_the_start_page_names_the_fault_first_and_says_what_to_do(
    night: Night, fault: Callable[[Night], None]
) -> None:
    young = ("no training yet", "no verdict on what is in production")

    def is_named() -> bool:
        """Whether it is all that the page tells: what is slow to answer is unknown meanwhile."""
        page = client.get("/").text
        first, *others = problem_list(page) or [""]
        return (
            all(said in first for said in (*SAID[fault], 'class="do"'))
            and "<title>Gyre: The loop needs attention: 1 thing to do</title>" in page
            and all(any(words in other for words in young) for other in others)
        )

    fault(night)
    with pages(night) as client:
        wait_until("word of it", is_named)


def test_events_that_wait_are_alerted_of_once_while_they_wait(night: Night) -> None:
    """By the console's program, which looks more often here than once a minute."""
    settings = night.settings.model_copy(update={"console_port": unused_port()})
    command = [sys.executable, "-c", IMPATIENT]
    log = settings.home / "logs" / "alerts.log"

    def times_seen() -> int:
        with closing(Alerts(settings)) as alerts:
            return sum(alert["count"] for alert in alerts.rows("late"))

    with (
        late_events(settings),
        running(
            command, settings.home / "console.log", **process_environment(settings)
        ),
    ):
        wait_until("three looks", lambda: times_seen() >= 3)
    (line,) = log.read_text().splitlines()
    alert = json.loads(line)
    assert (alert["model"], alert["cause"]) == ("late", "events wait")
    assert alert["message"].startswith(
        "late: a request has waited for the consumer for 3"
    )


def test_of_several_faults_the_worst_is_first(night: Night) -> None:
    faults = (harms, dies, stands_still)

    def are_first() -> bool:
        found = problem_list(client.get("/").text)
        return len(found) >= len(faults) and all(
            SAID[fault][0] in text for fault, text in zip(faults, found, strict=False)
        )

    for fault in reversed(faults):
        fault(night)
    with pages(night) as client:
        wait_until("word of all", are_first)
