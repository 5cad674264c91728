"""What the start page says first of a bad night: each fault as it is left behind, for real."""

from __future__ import annotations

import json
import re
import sys
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from feature_repo.broker import EventSchema, Stream
from mlflow_server.ledger import Ledger, LedgerRow
from mlflow_server.records import DecisionRow, Records
from mlflow_server.tracking import Tracking
from monitoring.console.advice import problems
from monitoring.console.checks import Check
from stack.environment import process_environment
from tests.conftest import running, unused_port, wait_until
from tests.console.year import fill_dataset
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
from monitoring.console import event_alerts

event_alerts.WATCH_SECONDS = 0.1
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

    def decided(
        self, version: str, verdict: str, action: str, rule: str, reason: str
    ) -> None:
        row = DecisionRow(
            NAME, version, self.now, verdict, action, rule, reason, "", "{}", {}
        )
        with closing(Records(self.settings)) as records:
            records.keep(row)

    def alerted(self, cause: str, message: str) -> None:
        with closing(Records(self.settings)) as records:
            records.count_alert(NAME, cause, message, self.now - timedelta(hours=1))
            records.alert_delivered(1)


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
        made.decided(served.first, "ok", "nothing", "ok", "no actionable drift")
        fill_dataset(own, "orders", made.now)
        yield made


def drifts(night: Night) -> None:
    why = "total_orders_30d: PSI 0.43"
    night.decided(night.version, "bad", "retrain", "drift", why)
    night.alerted(
        f"drift of version {night.version}, labels up to 2026-08-01",
        f"bad: {why}; retrain",
    )


def stands_still(night: Night) -> None:
    fill_dataset(night.settings, "orders", night.now, late=6)


def fails(night: Night) -> None:
    night.undo.enter_context(late_events(night.settings))


def dies(night: Night) -> None:
    night.consumer.close()


def is_refused(night: Night) -> None:
    rig, version = night.rig, night.rig.register(1.0, model=other_inputs()).version
    night.undo.callback(rig.promote, night.version)
    rig.promote(version)
    night.promoted(2, night.version, version, "ann", "it looks good")
    why = f"version {version} is refused: ModelRefusedError: model.onnx: inputs are"
    night.alerted(
        f"version {version} is refused", f"version {night.version} answers; {why}"
    )


def fails_its_gates(night: Night) -> None:
    tracking, tags = (
        Tracking(night.settings),
        {"as_of": night.now.isoformat(), "reason": "drift"},
    )

    def begun() -> str:
        key = f"{night.now}"
        return tracking.start_or_find_run(night.rig.spec.experiment, key, key, tags)

    night.undo.callback(lambda: tracking.finish(begun(), "FINISHED"))
    tracking.end(
        begun(), "refused: log_loss better_than_trivial: 0.69, the constant's is 0.61"
    )


def harms(night: Night) -> None:
    why = "60 of 110 predictions failed"
    night.promoted(2, night.version, "9", "airflow", "weekly")
    night.decided("9", "bad", "rollback", "harm", why)
    night.promoted(3, "9", night.version, "monitor", why)
    night.alerted("harm of version 9 (ledger row 2)", f"bad: {why}; rollback")


SAID = {
    harms: (
        "Version 9 did harm and was taken back",
        "60 of 110 predictions failed",
        "#ledger",
    ),
    is_refused: ("Serving refuses version ", "model.onnx: inputs are", "gyre rollback"),
    stands_still: (
        "Ingest of orders stands still",
        "6 h, at most 2 h",
        "/dags/ingest/runs",
    ),
    drifts: ("Drift: ", "total_orders_30d: PSI 0.43", f"/status/{NAME}#psi"),
    fails_its_gates: (
        "was refused by its gates",
        "log_loss better_than_trivial",
        "#versions",
    ),
    fails: (
        "Events of late wait",
        "a request has waited for the consumer",
        "gyre logs consumer",
    ),
    # Last: the consumer stays dead.
    dies: (
        "Events are not processed",
        "windows that end go online with",
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
    young = "is too young, or asked too little, for a verdict"

    def is_named() -> bool:
        """Whether it is all that the page tells: what is slow to answer is unknown meanwhile."""
        page = client.get("/").text
        first, *others = problem_list(page) or [""]
        return (
            all(said in first for said in (*SAID[fault], 'class="do"'))
            and "<title>Gyre: The loop needs a look: 1 thing to do</title>" in page
            and all(young in other for other in others)
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
        with closing(Records(settings)) as records:
            return sum(alert["count"] for alert in records.alerts("late"))

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
    faults = (harms, dies, stands_still, drifts)

    def are_first() -> bool:
        found = problem_list(client.get("/").text)
        return len(found) >= len(faults) and all(
            SAID[fault][0] in text for fault, text in zip(faults, found, strict=False)
        )

    for fault in reversed(faults):
        fault(night)
    with pages(night) as client:
        wait_until("word of all", are_first)


def test_one_cause_of_several_models_is_one_problem_and_a_healthy_loop_has_none() -> (
    None
):
    late = Check(
        "features", ok=False, remark="orders: features are not complete since …"
    )
    healthy = Check("alerts", ok=True, remark="none open")
    (found,) = problems({"one": [late, healthy], "two": [late]})
    assert found.subjects == ["one", "two"]
    assert found.what == "Ingest of orders stands still: features grow old"
    assert problems({"one": [healthy]}) == []
    (other,) = problems({"one": [replace(late, name="of nobody", remark="new")]})
    assert (other.what, other.to) == ("of nobody of one", "/status/one")
