"""Decisions and what checks found, as rows of Delta tables."""

from dataclasses import replace
from datetime import timedelta

from monitoring.decisions.store import (
    newest_decisions,
    notable_decisions,
    sampled_decisions,
    store_decision,
)
from tests.support.monitoring.log_lines import NOON
from tests.support.monitoring.year import decision_row

FIRST = decision_row(
    model="churn", version="1", as_of=NOON, verdict="bad", cause="drift of version 1",
    words="bad: spend: PSI 0.31",
)  # fmt: skip


def keep(settings, *rows):
    for row in rows:
        store_decision(settings, row)


def test_decisions_are_in_order_of_time_with_one_for_each_moment(settings):
    second = replace(
        FIRST, as_of=NOON + timedelta(hours=1), action="retrain", serving="{}"
    )
    other = replace(FIRST, model="other")
    keep(settings, second, FIRST, other, replace(FIRST, version="2"), FIRST)
    assert newest_decisions(settings, "churn") == [FIRST, second]
    assert newest_decisions(settings, "churn", 1) == [second]
    assert newest_decisions(settings, "churn", action="nothing") == [FIRST]
    assert newest_decisions(settings, "other") == [other]


def test_a_span_shows_an_acting_decision_else_a_bad_decision_else_the_newest(settings):
    day = NOON.replace(hour=0)
    decided = {
        1: ("bad", "retrain"), 2: ("bad", "nothing"), 5: ("ok", "nothing"), 6: ("bad", "nothing"),
        11: ("ok", "nothing"), 12: ("ok", "nothing"), 13: ("insufficient_data", "nothing"),
    }  # fmt: skip
    for hour, (verdict, action) in decided.items():
        at = day.replace(hour=hour)
        keep(settings, replace(FIRST, as_of=at, verdict=verdict, action=action))

    def sampled(hours):
        rows = sampled_decisions(settings, "churn", day, timedelta(hours=hours))
        return [row.as_of.hour for row in rows]

    def notable():
        return [row.as_of.hour for row in notable_decisions(settings, "churn", day)]

    assert sampled(6) == [1, 6, 13]
    assert sampled(24) == [1]
    assert notable() == [1, 6]
    at = day.replace(hour=20)
    keep(settings, replace(FIRST, as_of=at, action="rollback"))
    assert sampled(24) == [20]
    assert notable() == [1, 6, 20], "a rollback hides no retraining"
