"""Latency as harm, and which version is gone back to: pure functions, no server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from core.monitoring_spec import Monitoring
from mlflow_server.ledger import LedgerRow
from mlflow_server.records import DecisionRow
from monitoring.checks.guardrails import slow
from monitoring.checks.volume import usual_entities
from monitoring.past import Past, previous
from monitoring.serving_status import COUNTS, Counted, did

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LIMITS = Monitoring()
BOUNDS = (0.001, 0.01, 0.1, 1.0)


def counted(*numbers, failed=0, answered=0):
    """So many requests in each of BOUNDS."""
    so_far = [sum(numbers[: n + 1]) for n in range(len(numbers))]
    return Counted(
        failed, so_far[-1], tuple(zip(BOUNDS, so_far, strict=False)), answered
    )


FAST = counted(1000, 50, 0, 0)


@pytest.mark.parametrize(
    ("now", "before", "is_slow"),
    [
        (counted(0, 0, 500, 0), FAST, True),
        (FAST, FAST, False),
        (
            counted(1000, 0, 0, 100),
            FAST,
            False,
        ),  # a few large requests, most as fast as ever
        (counted(0, 500, 0, 0), FAST, False),  # a hundredth of a second more is nothing
        (counted(0, 0, 99, 0), FAST, False),
        (counted(0, 0, 500, 0), counted(99), False),
        (counted(0, 0, 500, 0), Counted(), False),  # serving has begun anew: unknown
        (counted(0, 0, 500, 0), counted(0, 0, 400, 0), False),
    ],
)
def test_slow_is_many_times_as_long_as_the_version_before(now, before, is_slow):
    found = slow(LIMITS, now, before)
    assert (found is not None) is is_slow
    assert found is None or "within" in found


def ledger(*changes):
    """Rows of (from, to, who)."""
    return [
        LedgerRow(
            "m", n + 1, "production", 100, *change[:2], change[2], "", None, NOW, NOW
        )
        for n, change in enumerate(changes)
    ]


@pytest.mark.parametrize(
    ("changes", "back_to"),
    [
        ([(None, "1", "ann")], None),
        ([(None, "1", "ann"), ("1", "2", "airflow")], "1"),
        ([(None, "1", "ann"), ("1", "2", "ann"), ("2", "1", "monitor")], None),
        # A hand puts the harmful one back, then a third comes: it is passed over.
        ([(None, "1", "ann"), ("1", "2", "ann"), ("2", "1", "monitor"), ("1", "2", "ann"),
          ("2", "3", "ann")], "1"),
        ([(None, "1", "ann"), ("1", "2", "ann"), ("2", "1", "ann"), ("1", "2", "ann"),
          ("2", "3", "ann")], "2"),  # who went back by hand may have had any reason
    ],
)  # fmt: skip
def test_the_monitor_goes_back_to_none_that_it_has_gone_back_from(changes, back_to):
    assert previous(ledger(*changes), "123") == back_to


def test_the_monitor_goes_back_past_a_version_that_was_deleted():
    rows = ledger((None, "1", "ann"), ("1", "2", "ann"), ("2", "3", "ann"))
    assert previous(rows, {"1", "3"}) == "1"
    assert previous(rows, {"3"}) is None


def test_what_is_usual_is_of_windows_that_share_no_hour_with_this_one():
    hours = {1: 900.0, 25: 1000.0, 24: 1100.0, 30: 1200.0}
    rows = [
        looked(hour, version, entities=entities)
        for hour, entities in hours.items() for version in ("1", "2")
    ]  # fmt: skip
    assert usual_entities(LIMITS, Past("1", NOW, None, None, rows, [])) == 1100.0
    assert usual_entities(LIMITS, Past("1", NOW, None, None, rows[:-2], [])) is None


def looked(hour, version="1", **figures):
    return DecisionRow("m", version, NOW - timedelta(hours=hour), "ok", "nothing", "ok", "", "",
                       "{}", figures)  # fmt: skip


def test_what_was_usual_when_nobody_asked_any_more_stays_so_until_they_ask_again():
    rows = [looked(hour, entities=0.0, usual=1000.0) for hour in range(100, 0, -1)]
    assert usual_entities(LIMITS, Past("1", NOW, None, None, rows, [])) == 1000.0
    again = [*rows, looked(0.5, entities=900.0, usual=1000.0)]
    assert usual_entities(LIMITS, Past("1", NOW, None, None, again, [])) == 0.0


def test_what_was_counted_in_another_life_of_a_version_is_not_counted_again():
    """It failed, was replaced, and is back: what counts is from its promotion on."""

    def decided(hour, now):
        stored = COUNTS.dump_json({"production 1": {"a": now}}).decode()
        at = NOW.replace(hour=hour)
        return DecisionRow(
            "m", "1", at, "ok", "nothing", "ok", "", "", "{}", {}, stored
        )

    (promotion,) = ledger((None, "1", "ann"))
    rows = [
        decided(8, counted(10, failed=90)),
        decided(11, counted(20, failed=90)),
        decided(13, counted(25, failed=90)),
    ]
    past = Past("1", NOW.replace(hour=13, minute=1), promotion, None, rows, [])
    now = counted(220, failed=90, answered=200)
    # The look of a minute ago is too near; that of before the promotion is where it began.
    assert past.counted({"production 1": {"a": now}}, 1) == counted(200, answered=200)
    assert past.counted({"production 1": {"a": counted(3)}}, 1) == counted(3), (
        "serving has begun anew"
    )
    late = Past("1", NOW.replace(hour=14, minute=1), promotion, None, rows, [])
    assert late.counted({"production 1": {"a": now}}, 1).timed == 195


def test_a_replica_that_begins_anew_hides_nothing_of_the_other():
    earlier = {
        "production 1": {"a": counted(960, failed=0), "b": counted(960, failed=40)}
    }
    now = {"production 1": {"a": counted(2460, failed=35), "b": counted(600, failed=5)}}
    found = did("production 1", now, earlier)
    assert (found.failed, found.timed) == (40, 2100)
