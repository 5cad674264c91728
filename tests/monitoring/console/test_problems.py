"""What the start page says first of a bad night: each fault as it is left behind, for real."""

import json
import re
import subprocess
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest

from core.settings import Settings
from mlflow_server.alerts import Alerts, DriftAlert
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from monitoring.check import CheckResult
from monitoring.decisions.store import store_checks, store_decision
from tests.conftest import wait_until
from tests.support.monitoring.late_events import late_events
from tests.support.monitoring.page_text import one_line
from tests.support.monitoring.year import decision_row, fill_dataset
from tests.support.serving.console import WATCH, console

pytestmark = pytest.mark.journey

NAME = "customer_churn_model"


@dataclass
class Night:
    """A healthy loop of its own beside the rig's serving and MLflow, and what befalls it."""

    rig: Any
    settings: Settings
    version: str
    consumer: subprocess.Popen[bytes]

    @property
    def now(self):
        return datetime.now(UTC)

    def decided(self, version, **values):
        row = decision_row(model=NAME, version=version, as_of=self.now, **values)
        store_decision(self.settings, row)
        return row

    def alerted(self, cause, content):
        with closing(Alerts(self.settings)) as alerts:
            alerts.alert(NAME, cause, content, self.now - timedelta(hours=1))


@pytest.fixture
def night(rig, served, consumer, tmp_path):
    settings = rig.settings.model_copy(update={"home": tmp_path})
    night = Night(rig, settings, served.first, consumer)
    at = night.now - timedelta(hours=8)
    row = LedgerRow(
        NAME, 1, "production", 100, None, served.first, "test", "because", None, at, at
    )
    with closing(Ledger(settings)) as ledger:
        ledger.insert(row)
    night.decided(served.first)
    fill_dataset(settings, "orders", night.now)
    return night


def drifts(night):
    drift = CheckResult(
        name="psi/total_orders_30d",
        kind="data_drift",
        status="bad",
        words="total_orders_30d: PSI 0.43, at most 0.25",
        remedy="A retraining starts by itself.",
        link=f"/status/{NAME}?check=psi/total_orders_30d",
    )
    cause = f"drift of version {night.version}"
    row = night.decided(
        night.version, verdict="bad", words=f"bad: {drift.words}", cause=cause
    )
    store_checks(night.settings, NAME, row.as_of, [drift])
    night.alerted(row.cause, row.words)


def stands_still(night):
    fill_dataset(night.settings, "orders", night.now, late=6)


def dies(night):
    night.consumer.kill()


def harms(night):
    why = "60 of 110 predictions failed"
    night.decided("9", verdict="bad", action="rollback", words=why)
    message = f"version 9 did harm and was taken back: {why}"
    content = DriftAlert("predictions", "harm", "critical", None, night.now, message)
    night.alerted("harm of version 9 (ledger row 2)", content)


FAULTS = {
    harms: ("version 9 did harm and was taken back", "gyre decide", "gyre alerts mute"),
    dies: ("Events are not processed", "windows that end", "gyre logs consumer"),
    stands_still: ("features are not complete", "6 h, at most 1 h", "/dags/ingest/run"),
    drifts: ("total_orders_30d: PSI 0.43", "A retraining starts", "check=psi/total_"),
}
"""What the page says of each fault, the worst first."""


def has_words(item, words):
    return all(text in unescape(item) for text in (*words, 'class="do"'))


def test_waiting_events_raise_an_alert(night):
    log = night.settings.home / "logs" / "alerts.log"
    often = console(night.rig, constants={WATCH: 1.0}, home=night.settings.home)
    with late_events(night.settings), often:
        wait_until("an alert", lambda: log.exists() and "\n" in log.read_text())
    (line,) = log.read_text().splitlines()
    alert = json.loads(line)
    assert (alert["model"], alert["cause"]) == ("late", "events wait")
    beginning = "late: a request has waited for the consumer for 3"
    assert alert["message"].startswith(beginning)


def test_the_worst_of_several_faults_is_listed_first(night):
    """The last of this file: the consumer stays dead."""

    def are_listed():
        listed = re.findall(
            r'<li class="panel.*?</li>', one_line(client.get("/").text), flags=re.DOTALL
        )
        return len(listed) >= len(FAULTS) and all(
            map(has_words, listed, FAULTS.values())
        )

    for fault in FAULTS:
        fault(night)
    with console(night.rig, home=night.settings.home) as (client, _):
        wait_until("all faults", are_listed)
