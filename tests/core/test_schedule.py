"""How often something runs, by its schedule."""

from datetime import timedelta

import pytest

from core.errors import SettingsError
from core.schedule import periods
from core.settings import load_settings
from core.spec import load_spec
from feature_engine.check import late_features
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
    assert min(periods(schedule)) == minutes * MINUTE


@pytest.mark.parametrize(
    ("schedule", "hours"),
    [
        ("*/20 * * * *", 1 / 3),
        ("* 8-18 * * *", 13 + 1 / 60),
        ("* * * * 1-6", 24 + 1 / 60),
        ("0 6 * * 1-5", 72),
    ],
)
def test_check_finds_a_pause_of_the_ingests_that_the_freshness_does_not_bear(
    tmp_path, schedule, hours
):
    spec = load_spec("customer_churn_model")
    settings = new_settings(tmp_path, ingest_schedule=schedule)

    def findings(freshness):
        limits = spec.monitoring.model_copy(update={"freshness_hours": freshness})
        patient = spec.model_copy(update={"monitoring": limits})
        return [*late_features(settings, patient)]

    (finding,) = findings(hours - 0.01)
    assert f"more than the {hours:g} h" in finding
    assert findings(hours + 0.01) == []


def test_an_ingest_comes_every_20_minutes_and_a_schedule_of_no_meaning_is_refused(
    tmp_path, monkeypatch
):
    assert min(periods(new_settings(tmp_path).ingest_schedule)) == 20 * MINUTE
    monkeypatch.setenv("GYRE_INGEST_SCHEDULE", "@often")
    with pytest.raises(
        SettingsError, match=r"GYRE_INGEST_SCHEDULE: .*; found '@often'$"
    ):
        load_settings(home=tmp_path)


def test_check_finds_an_ingest_that_comes_too_rarely_for_the_freshness(tmp_path):
    spec = load_spec("customer_churn_model")
    settings = new_settings(tmp_path)
    assert [*late_features(settings, spec)] == []
    daily = settings.model_copy(update={"ingest_schedule": "0 6 * * *"})
    (finding,) = late_features(daily, spec)
    assert finding.startswith("customer_churn_model.toml: monitoring.freshness_hours: ")
    assert "more than the 24 h that may lie between two ingests" in finding
    patient = spec.monitoring.model_copy(update={"freshness_hours": 25})
    assert [
        *late_features(daily, spec.model_copy(update={"monitoring": patient}))
    ] == []
