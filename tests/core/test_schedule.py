"""How often something runs, by its schedule."""

from datetime import timedelta

import pytest

from core.errors import SettingsError
from core.schedule import shortest_period
from core.settings import load_settings
from tests.conftest import new_settings

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("schedule", "minutes"),
    [
        ("*/20 8-18 * * *", 20),
        ("0 6 * * 1-5", 24 * 60),
        ("@hourly", 60),
        ("@quarterly", 90 * 24 * 60),
    ],
)
def test_the_period_of_a_schedule_is_the_shortest_time_between_two_runs(
    schedule, minutes
):
    assert shortest_period(schedule) == minutes * MINUTE


def test_an_ingest_comes_every_20_minutes_and_a_schedule_of_no_meaning_is_refused(
    tmp_path, monkeypatch
):
    assert shortest_period(new_settings(tmp_path).ingest_schedule) == 20 * MINUTE
    monkeypatch.setenv("GYRE_INGEST_SCHEDULE", "@often")
    with pytest.raises(SettingsError, match=r"GYRE_INGEST_SCHEDULE: .* '@often'"):
        load_settings(home=tmp_path)
