"""A version that harms by errors goes back by itself, once, and stays back.

By a worse F1: tests/monitoring/test_monitor.py. By its time or a collapse of its scores:
tests/monitoring/test_harm.py.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import pytest

from mlflow_server.ledger import Ledger
from monitoring.decision_log import newest_decisions
from monitoring.monitor import monitor
from tests.conftest import at_most, wait_until
from tests.faults.conftest import alerts
from tests.serving.conftest import tiny_onnx

ENOUGH = 110


def fails_for_some():
    """Logarithm of 0.01 · days_since_last_order + 0.89: a probability of the defaults' 12 days, and
    none of more than 182, which most customers have.
    """
    return tiny_onnx(0.89, score="Log")


def ask(rig, client):
    """Whether each of so many customers got an answer."""
    customers = range(1, ENOUGH + 1)
    return [rig.predict(client, customer).is_success for customer in customers]


@pytest.mark.timed
def test_a_failing_version_is_rolled_back_within_ten_seconds_and_only_once(rig, served):
    """19."""
    assert all(ask(rig, served.client))
    version = rig.register(1.0, model=fails_for_some()).version
    rig.promote(version)
    wait_until(
        f"version {version}",
        lambda: f"version {version} answers" in served.client.get("/status").text,
    )
    failures = ask(rig, served.client).count(False)

    with ThreadPoolExecutor(1) as executor:
        run = executor.submit(monitor, rig.settings, rig.spec, datetime.now(UTC))
        wait_until("a verdict", lambda: last_decision(rig)[1:] == ("rollback", "harm"))
        verdict = time.monotonic()
        rig.answers_as(served.client, served.first)
        seconds = time.monotonic() - verdict
        report = run.result()
    assert seconds <= at_most(10)
    assert (report.version, report.decision.action) == (version, "rollback")
    assert report.decision.reason.startswith(
        f"{failures} of {ENOUGH} predictions failed, at most 5.0% is"
    )
    row = ledger_rows(rig)[-1]
    assert (row.from_version, row.to_version) == (version, served.first)
    assert (row.who, row.action) == ("monitor", "automatic rollback")
    assert row.why == report.decision.reason
    assert row.applied_at
    (alert,) = alerts(rig, f"harm of version {version} ")
    assert (alert["drift_type"], alert["severity"]) == ("harm", "critical")

    rows = ledger_rows(rig)
    again = monitor(rig.settings, rig.spec, datetime.now(UTC))
    assert (again.version, again.decision.action) == (served.first, "nothing")
    assert ledger_rows(rig) == rows, "ping-pong"
    assert alerts(rig, f"harm of version {version} ") == [alert]


def last_decision(rig):
    rows = newest_decisions(rig.settings, rig.spec.name, 1)
    return (rows[0].version, rows[0].action, rows[0].rule) if rows else ("", "", "")


def ledger_rows(rig):
    with closing(Ledger(rig.settings)) as opened:
        return opened.rows(rig.spec.name)
