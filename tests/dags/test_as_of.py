"""Which moment a run is asked to be about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from core.errors import SettingsError
from dags.run import given_moment

BACKFILL = datetime(2026, 5, 3, tzinfo=UTC)


def test_the_form_goes_before_the_date_of_a_backfill():
    form = {"as_of": "2026-05-02T02:00:00+02:00"}
    moment = given_moment(form, BACKFILL)
    assert (moment, moment.tzinfo) == (datetime(2026, 5, 2, tzinfo=UTC), UTC)
    east = BACKFILL.astimezone(timezone(timedelta(hours=3)))
    assert given_moment({"as_of": None}, east).tzinfo is UTC
    assert given_moment({"as_of": ""}, None) is None
    with pytest.raises(SettingsError, match="parameter as_of: expected a time like"):
        given_moment({"as_of": "2026-05-01T00:00:00"}, None)
