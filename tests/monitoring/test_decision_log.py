"""Decisions and what checks found, as rows of Delta tables."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from core.spec import load_spec
from core.storage import Table
from monitoring.check import CheckResult
from monitoring.decision_log import (
    DecisionRow,
    newest_decisions,
    notable_decisions,
    sampled_decisions,
    store_checks,
    store_decision,
    stored_checks,
)
from tests.conftest import at_most, new_settings
from tests.console.year import HOURS, fill_decisions

FIRST = DecisionRow(
    "churn", "1", datetime(2026, 11, 20, 12, tzinfo=UTC), "bad", "nothing", "first_bad_window",
    "spend: PSI 0.31", "drift of version 1", "bad: spend: PSI 0.31", "{}", 900,
)  # fmt: skip
HOUR = timedelta(hours=1)
SPEC = load_spec("customer_churn_model")


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path)


def keep(settings, *rows):
    for row in rows:
        store_decision(settings, row)


def test_decisions_are_in_the_order_of_their_moments_and_a_repeated_one_replaces_its_row(
    settings,
):
    assert newest_decisions(settings, "churn") == []
    second = replace(FIRST, as_of=FIRST.as_of + HOUR, action="retrain", serving="{}")
    other = replace(FIRST, model="other")
    keep(settings, second, FIRST, other, replace(FIRST, version="2"), FIRST)
    assert newest_decisions(settings, "churn") == [FIRST, second]
    assert newest_decisions(settings, "churn", 1) == [second]
    assert newest_decisions(settings, "churn", action="nothing") == [FIRST]
    assert newest_decisions(settings, "other") == [other]


def test_of_each_span_comes_the_one_that_acted_else_a_bad_one_else_the_newest(settings):
    day = FIRST.as_of.replace(hour=0)
    decided = {
        1: ("bad", "retrain"), 2: ("bad", "nothing"), 5: ("ok", "nothing"), 6: ("bad", "nothing"),
        11: ("ok", "nothing"), 12: ("ok", "nothing"), 13: ("insufficient_data", "nothing"),
    }  # fmt: skip
    for hour, (verdict, action) in decided.items():
        at = day.replace(hour=hour)
        keep(settings, replace(FIRST, as_of=at, verdict=verdict, action=action))

    def sampled(hours, since=day):
        rows = sampled_decisions(settings, "churn", since, hours)
        assert {row.inputs for row in rows} <= {""}
        assert {row.reason for row in rows} <= {FIRST.reason}
        return [row.as_of.hour for row in rows]

    def notable():
        return [row.as_of.hour for row in notable_decisions(settings, "churn", day)]

    assert sampled(1) == [*decided]
    assert sampled(6) == [1, 6, 13]
    assert sampled(24) == [1]
    assert sampled(24, since=day.replace(hour=12)) == [13]
    assert notable() == [1, 6]
    assert sampled_decisions(settings, "other", day, 24) == []
    at = day.replace(hour=20)
    keep(settings, replace(FIRST, as_of=at, action="rollback"))
    assert sampled(24) == [20]
    assert notable() == [1, 6, 20], "a rollback hides no retraining"


def test_what_checks_found_is_read_by_moment(settings):
    moments = [FIRST.as_of + n * HOUR for n in range(4)]
    assert stored_checks(settings, "churn", moments) == {}
    psi = CheckResult(name="psi/spend", kind="data_drift", value=0.1, limit=0.25)
    for n, at in enumerate(moments):
        store_checks(settings, "churn", at, [replace(psi, value=n / 10)])
    store_checks(settings, "churn", moments[0], [psi, psi])
    wanted = [moments[3], moments[0]]
    assert stored_checks(settings, "churn", wanted) == {
        moments[0]: [psi, psi],
        moments[3]: [replace(psi, value=0.3)],
    }
    assert stored_checks(settings, "churn", []) == {}


def test_small_files_are_compacted_as_they_come(settings):
    keep(settings, *(replace(FIRST, as_of=FIRST.as_of + n * HOUR) for n in range(52)))
    table = Table(settings, "decisions", None)
    assert len(table.names()) < 5
    assert len(newest_decisions(settings, "churn")) == 52


@pytest.mark.timed
def test_a_year_of_decisions_is_read_in_little_time(settings):
    now = datetime.now(UTC)
    fill_decisions(settings, SPEC, now, HOURS)

    def fastest(read):
        times = []
        for _ in range(5):
            began = time.perf_counter()
            read()
            times.append(time.perf_counter() - began)
        print(f"{1000 * min(times):.0f} ms")  # noqa: T201  (-s)
        return min(times)

    since = now - HOURS * HOUR
    for read in (
        lambda: newest_decisions(settings, SPEC.name),
        lambda: sampled_decisions(settings, SPEC.name, since, 24),
        lambda: notable_decisions(settings, SPEC.name, since),
    ):
        assert fastest(read) < at_most(0.1)
