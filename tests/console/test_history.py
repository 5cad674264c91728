"""What is drawn of checks: which ones, in which order, and where a point is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.check import CheckResult
from monitoring.console.history import (
    ACTING,
    BOTTOM,
    HOURS,
    PASSIVE,
    TOP,
    TRAFFIC,
    Point,
    Series,
    Span,
    panels_of,
    picture_of,
    read_history,
    shown_span,
)
from monitoring.decision_log import store_checks, store_decision
from tests.conftest import new_settings
from tests.console.year import decision_row

NOW = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(hours=1)
HOUR = timedelta(hours=1)
SPAN = timedelta(hours=HOURS)
NUMBERS = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))


def result(name, value, limit=0.25, **more):
    return CheckResult(name=name, kind="data_drift", value=value, limit=limit, **more)


def series(*values, limit=None):
    points = {
        NOW - (len(values) - n) * HOUR: Point(value, limit, "ok")
        for n, value in enumerate(values)
    }
    return Series(newest=result("psi/spend", values[-1], limit), points=points)


@given(st.lists(NUMBERS, min_size=1, max_size=9), NUMBERS | st.none())
def test_a_picture_has_room_for_every_value_and_its_limit(values, limit):
    span = Span(NOW - 24 * HOUR, NOW)
    drawn = picture_of(series(*values, limit=limit), span)
    pixels = [mark.y for mark in drawn.marks]
    pixels += [mark.limit for mark in drawn.marks if mark.limit is not None]
    assert all(TOP <= pixel <= BOTTOM for pixel in pixels)
    heights = [pixel for _, pixel in sorted(zip(values, pixels, strict=False))]
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize(
    ("age", "shown", "words"),
    [
        (timedelta(minutes=31), timedelta(minutes=32), ["11:44", "12:00"]),
        (timedelta(days=20), timedelta(days=20, minutes=1), ["Nov 10", "Nov 20"]),
        (timedelta(days=400), timedelta(days=30), ["Nov 5", "Nov 20"]),
    ],
)
def test_pictures_show_the_time_since_the_first_promotion_up_to_thirty_days(
    age, shown, words
):
    now = datetime(2099, 11, 20, 12, 8, tzinfo=UTC)
    span = shown_span([now - age, now], now)
    assert span.until - span.since == shown
    ticks = span.ticks(2)
    assert [*ticks.values()] == words
    places = [span.place(moment) for moment in ticks]
    assert all(1 < place < 99 for place in places)
    assert shown_span([], now).since == now - timedelta(days=30)


def test_the_worst_acting_check_is_first(tmp_path):
    settings = new_settings(tmp_path)
    newest = [
        result("psi/near", 0.2),
        result("psi/far", 0.01),
        result("ks/far", 0.5, None),
        result("online/auc", 0.6, 0.65, status="bad"),
        result("psi/worst", 0.5, status="bad"),
        result("serving/p99_ms", 9.0, None),
        result("serving/failures", 0.2, 0.05, status="harmful"),
        result("psi/tenure", 8.3, status="note", acts=False, reason="grows each day"),
        result("missing/none", None),
    ]
    for spans in (3, 2, 1):
        at = NOW - spans * SPAN
        row = decision_row(model="churn", version="1", as_of=at)
        store_decision(settings, row)
        store_checks(settings, "churn", at, newest if spans == 1 else newest[:1])
    histories = read_history(settings, "churn")
    assert read_history(settings, "other") == []
    near = next(history for history in histories if history.newest.name == "psi/near")
    assert [*near.points] == [NOW - spans * SPAN for spans in (3, 2, 1)]

    def drawn(wanted):
        panels = panels_of(histories, wanted)
        return {
            heading: [one.newest.name for one in some]
            for heading, some in panels.items()
        }

    assert drawn(None) == {
        ACTING: ["serving/failures", "psi/worst", "online/auc", "psi/near", "psi/far"],
        TRAFFIC: ["serving/p99_ms"],
        PASSIVE: ["psi/tenure"],
    }
    assert drawn("ks/far") == {ACTING: ["ks/far"], TRAFFIC: [], PASSIVE: []}
