"""Checks of a team's views: skew after each materialisation, changed definitions, old values."""

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from feature_repo.published.feast_reader import OnlineFeatures
from feature_repo.published.service import PublishedService
from monitoring.checks.skew import Vector, compare_offline
from tests.conftest import new_settings
from tests.support.feature_repo.team import REQUEST, SERVICE, feast, make_team, rows_of

pytestmark = pytest.mark.journey

HOUR = timedelta(hours=1)
NAMES = ["conv_rate", "conv_rate_plus_val2"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_team(tmp_path_factory.mktemp("team")) / "feature_repo"


@pytest.fixture(scope="module")
def settings(repository, tmp_path_factory):
    return new_settings(tmp_path_factory.mktemp("home"), feast_repo=repository)


def vectors(settings, moment):
    """What serving reads and logs of two drivers at a moment."""
    online = OnlineFeatures(settings, SERVICE, NAMES)
    keys = [{"driver_id": number} for number in (1001, 1002)]
    rows = online.read([key | REQUEST for key in keys], moment)
    return [
        Vector(key=key, moment=moment, features=row, request_data=REQUEST)
        for key, row in zip(keys, rows, strict=True)
    ]


def test_a_value_that_was_materialised_late_is_no_skew_and_any_other_value_is(
    settings, repository
):
    newest = rows_of(repository)["event_timestamp"].max().to_pydatetime()
    moment = datetime.now(UTC)
    logged = vectors(settings, moment)
    file = repository / "data" / "driver_stats.parquet"
    rows = pd.read_parquet(file)
    late = rows[rows["event_timestamp"] == newest]
    late = late.assign(
        event_timestamp=moment - timedelta(milliseconds=1), conv_rate=0.125
    )
    try:
        # They happened before the moment, and come online after it.
        pd.concat([rows, late]).to_parquet(file)
        service = PublishedService(settings, SERVICE)
        assert compare_offline(service, logged, NAMES, [timedelta(0)]) == [set(), set()]
        # To the microsecond: the late rows may be of this very second.
        feast(repository, "materialize-incremental", datetime.now(UTC).isoformat())
        after = vectors(settings, datetime.now(UTC))
        service = PublishedService(settings, SERVICE)
        assert after[0].features["conv_rate"] == 0.125
        assert (
            compare_offline(service, logged + after, NAMES, [timedelta(0)])
            == [set()] * 4
        )
        logged[0].features["conv_rate"] = 0.5
        differing = compare_offline(service, logged, NAMES, [timedelta(0)])
        assert differing == [{"conv_rate"}, set()]
    finally:
        rows.to_parquet(file)
