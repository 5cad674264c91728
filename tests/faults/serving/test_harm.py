"""A version that harms by errors goes back by itself, once, and stays back.

By a worse F1: tests/monitoring/test_monitor.py. By its time or a collapse of its scores:
tests/monitoring/checks/test_harm.py.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import pytest

from monitoring.decisions.store import newest_decisions
from monitoring.monitor import monitor
from tests.conftest import at_most, wait_until
from tests.faults.conftest import alerts, shows
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
def test_a_failing_version_is_rolled_back_within_ten_seconds_and_only_once(
    rig, served, ledger
):
    """19."""
    settings = rig.settings
    name = rig.spec.name
    assert all(ask(rig, served.client))
    version = rig.register(1.0, model=fails_for_some()).version
    rig.promote(version)
    shows(served.client, f"version {version} answers")
    failures = ask(rig, served.client).count(False)

    with ThreadPoolExecutor(1) as executor:
        run = executor.submit(monitor, settings, rig.spec, datetime.now(UTC))
        rollbacks = partial(newest_decisions, settings, name, action="rollback")
        wait_until("a verdict", rollbacks)
        verdict = time.monotonic()
        rig.answers_as(served.client, served.first)
        seconds = time.monotonic() - verdict
        report = run.result()
    assert seconds <= at_most(10)
    assert (report.version, report.decision.action) == (version, "rollback")
    assert report.decision.reason.startswith(
        f"{failures} of {ENOUGH} predictions failed, at most 5.0% is"
    )
    rows = ledger.rows(name)
    row = rows[-1]
    assert (row.from_version, row.to_version) == (version, served.first)
    assert (row.who, row.why) == ("monitor", report.decision.reason)
    assert row.applied_at
    (alert,) = alerts(settings, f"harm of version {version} ")
    assert (alert["drift_type"], alert["severity"]) == ("harm", "critical")

    again = monitor(settings, rig.spec, datetime.now(UTC))
    assert (again.version, again.decision.action) == (served.first, "nothing")
    assert ledger.rows(name) == rows, "ping-pong"
    assert alerts(settings, f"harm of version {version} ") == [alert]
