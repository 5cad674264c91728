"""The time that pictures show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from monitoring.console.history import shown_span


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
