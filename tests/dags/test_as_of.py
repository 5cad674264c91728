"""Which moment a run is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from core.errors import SettingsError
from core.timestamps import parse_timestamp
from dags.run import resolve

RUN_AFTER = datetime(2026, 5, 4, 12, tzinfo=UTC)
LOGICAL = datetime(2026, 5, 3, tzinfo=UTC)
EVENTS = [{"as_of": "2026-05-01T00:00:00Z"}, {"as_of": "2026-05-02T02:00:00+02:00"}, {}]


def test_the_parameter_goes_before_all_else():
    given = {"as_of": "2026-01-01T00:00:00+00:00"}
    assert resolve(given, EVENTS, LOGICAL, RUN_AFTER) == datetime(
        2026, 1, 1, tzinfo=UTC
    )


def test_then_the_newest_event_then_the_logical_date_then_run_after():
    assert resolve({"as_of": None}, EVENTS, LOGICAL, RUN_AFTER) == datetime(
        2026, 5, 2, tzinfo=UTC
    )
    assert resolve({}, [{}], LOGICAL, RUN_AFTER) == LOGICAL
    assert resolve({}, [], None, RUN_AFTER) == RUN_AFTER


def test_every_answer_is_in_utc():
    east = timezone(timedelta(hours=3))
    assert resolve({}, [], RUN_AFTER.astimezone(east), RUN_AFTER).tzinfo is UTC
    assert parse_timestamp("2026-05-02T02:00:00+02:00", "x").tzinfo is UTC


@pytest.mark.parametrize(
    "text", ["2026-05-01T00:00:00", "2026-05-01", "yesterday", "", 5]
)
def test_a_naive_or_malformed_time_is_refused_by_name(text):
    with pytest.raises(SettingsError, match="parameter as_of: expected a time like"):
        parse_timestamp(text, "parameter as_of")
