"""`gyre alerts` in a shell: what is open, who takes care of it, what is muted."""

import getpass
import json
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_server.alerts import QUIET, Alerts
from tests.conftest import new_settings
from tests.support.tools.clone import gyre

MODEL = "customer_churn_model"


@pytest.fixture
def settings(tmp_path):
    """Settings of a home with two open incidents, and one that is over."""
    settings = new_settings(tmp_path)
    now = datetime.now(UTC)
    with closing(Alerts(settings)) as alerts:
        alerts.note(MODEL, "old", "it is over", now - 2 * QUIET)
        alerts.note(MODEL, "drift", "spend drifts", now)
        alerts.note("orders", "ingest failed: #", "no file", now)
    return settings


def said(settings, arguments, code=0):
    done = gyre(settings, f"alerts {arguments}", code)
    return done.stderr if code else done.stdout


def test_open_incidents_are_listed_acknowledged_and_muted(settings):
    listed = json.loads(said(settings, "--json"))
    numbers = {row["model"]: row["sequence"] for row in listed}
    assert [row["message"] for row in listed] == ["spend drifts", "no file"]
    assert [row["cause"] for row in json.loads(said(settings, f"{MODEL} --json"))] == [
        "drift"
    ]

    person = f"shell:{getpass.getuser()}"
    words = said(settings, f"acknowledge {numbers[MODEL]} --reason known")
    assert words.startswith(f"{MODEL}: drift: acknowledged at ")
    assert words.endswith(f" by {person}: known\n")
    before = datetime.now(UTC)
    muted = said(settings, f"mute {numbers['orders']} --hours 1.5")
    assert muted.startswith("orders: ingest failed: #: muted until ")
    (row,) = json.loads(said(settings, "orders --json"))
    length = datetime.fromisoformat(row["until"]) - before
    assert timedelta(hours=1.5) <= length < timedelta(hours=1.6)

    table = said(settings, "")
    (drift,) = [line for line in table.splitlines() if "spend drifts" in line]
    (failure,) = [line for line in table.splitlines() if "no file" in line]
    assert f"by {person}: known" in drift
    assert "muted until" in failure
    with closing(Alerts(settings)) as alerts:
        now = datetime.now(UTC)
        assert alerts.undelivered(MODEL, now)[0]["message"] == "it is over"
        assert alerts.undelivered("orders", now) == []


def test_a_number_that_is_not_open_is_refused(settings, tmp_path):
    refused = said(settings, "acknowledge 99", code=1)
    assert refused == "gyre: no incident 99 is open: gyre alerts lists the open ones\n"
    empty = new_settings(tmp_path / "empty")
    assert said(empty, "") == "no incident is open\n"
