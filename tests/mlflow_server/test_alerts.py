"""Alerts through a real receiver: a webhook of the test's own."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import sqlalchemy as sql
from sqlalchemy.schema import DropSchema

from mlflow_server.alerts import QUIET, Alerts, DriftAlert, is_open
from tests.conftest import new_settings, unused_port
from tests.feature_repo.test_postgres import postgres, server_log  # noqa: F401  (fixtures)

MODEL, CAUSE = "customer_churn_model", f"skew of version 1: {'a_feature, ' * 100}"
MESSAGE = "bad: total_spend_30d: PSI 0.31; retrain"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DRIFT = DriftAlert("total_spend_30d", "data_drift", "significant", 0.31, NOW, MESSAGE)
FIELDS = {
    "feature": "total_spend_30d",
    "drift_type": "data_drift",
    "severity": "significant",
    "psi_score": 0.31,
    "detected_at": "2026-11-20T12:00:00Z",
    "message": MESSAGE,
}


class Webhook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(json.loads(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def receiving(port=0, kind=HTTPServer, handler=Webhook):
    """Address and list of what arrived."""
    with kind(("127.0.0.1", port), handler) as server:
        server.received = []
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"json://127.0.0.1:{server.server_port}", server.received
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def opened(folder, urls=""):
    with closing(Alerts(new_settings(folder, alert_urls=urls))) as alerts:
        yield alerts


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def anywhere(request, tmp_path):
    """Settings of an empty database of either kind."""
    if request.param == "SQLite":
        return new_settings(tmp_path)
    address = request.getfixturevalue("postgres").replace(
        "postgres://", "postgresql+psycopg://"
    )
    engine = sql.create_engine(address)
    with engine.begin() as connection:
        connection.execute(DropSchema("gyre", cascade=True, if_exists=True))
    engine.dispose()
    return new_settings(tmp_path, database_url=address)


def test_twenty_sightings_are_one_alert_with_a_count(tmp_path):
    with receiving() as (url, received), opened(tmp_path, url) as alerts:
        for hour in range(20):
            at = NOW + timedelta(hours=hour)
            assert alerts.alert(MODEL, CAUSE, DRIFT, at) == (hour == 0)
        (row,) = alerts.rows(MODEL)
    assert (row["count"], row["delivered"]) == (20, True)
    assert row["first"] < row["last"]
    assert json.loads(row["details"]).items() >= FIELDS.items()
    (sent,) = received
    assert sent["title"] == f"Gyre: {MODEL}"
    fields = [
        f"{name}: {FIELDS[name]}" for name in ("feature", "psi_score", "severity")
    ]
    for part in (*fields, MESSAGE, CAUSE):
        assert part in sent["message"]


def test_what_many_see_at_once_one_delivers_and_each_counts(anywhere):
    """Each with a database connection of its own, and nothing made before."""
    together = threading.Barrier(8)
    causes = [f"{CAUSE} of {end}" for end in "ab"]

    def see(_):
        with closing(Alerts(settings)) as alerts:
            went_out = []
            for cause in causes:
                together.wait(600)
                went_out.append(alerts.alert(MODEL, cause, MESSAGE, NOW))
            return went_out

    with receiving() as (url, received), ThreadPoolExecutor(8) as pool:
        settings = anywhere.model_copy(update={"alert_urls": url})
        deliveries = [*pool.map(see, range(8))]
    assert sum(map(sum, deliveries)) == len(received) == 2
    with closing(Alerts(anywhere)) as alerts:
        rows = {row["cause"]: row["count"] for row in alerts.rows(MODEL)}
    assert rows == dict.fromkeys(causes, 8)


def test_without_an_address_alerts_are_lines_of_a_file(tmp_path):
    with opened(tmp_path) as alerts:
        assert alerts.alert(MODEL, CAUSE, DRIFT, NOW)
        assert not alerts.alert(MODEL, CAUSE, DRIFT, NOW)
    (line,) = (tmp_path / "logs" / "alerts.log").read_text().splitlines()
    incident = {"time": NOW.isoformat(), "model": MODEL, "cause": CAUSE}
    assert json.loads(line).items() >= (FIELDS | incident).items()


def test_a_cause_that_was_not_seen_for_three_hours_is_another_incident(tmp_path):
    again = NOW + 2 * QUIET + timedelta(seconds=1)
    with opened(tmp_path) as alerts:
        assert alerts.alert(MODEL, CAUSE, MESSAGE, NOW)
        assert not alerts.alert(MODEL, CAUSE, MESSAGE, NOW + QUIET)
        assert alerts.alert(MODEL, CAUSE, MESSAGE, again)
        assert [row["count"] for row in alerts.rows(MODEL)] == [2, 1]
        assert [is_open(row, again) for row in alerts.rows(MODEL)] == [False, True]


def test_what_was_not_delivered_any_later_look_delivers_once(tmp_path):
    port = unused_port()
    with opened(tmp_path, f"json://127.0.0.1:{port}") as alerts:
        assert not alerts.alert(MODEL, CAUSE, MESSAGE, NOW), "nobody is there"
        alerts.note(MODEL, "killed after", DRIFT, NOW)  # and before it told anybody
        undelivered = alerts.rows(MODEL, delivered=False)
        assert [row["cause"] for row in undelivered] == [CAUSE, "killed after"]
        with receiving(port) as (_, received), ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(lambda _: alerts.deliver(MODEL, NOW), range(4))) == 2
        assert len(received) == 2
        assert alerts.rows(MODEL, delivered=False) == []
        counts = {row["count"] for row in alerts.rows(MODEL)}
        assert counts == {1}, "a try is no sighting"


def test_a_dag_that_succeeds_ends_the_alerts_about_its_failed_tasks_alone(tmp_path):
    with closing(Alerts(new_settings(tmp_path))) as alerts:
        for task in ("train_m.validate", "train_mm.validate", "train_m.gate"):
            alerts.alert_failure("m", task, "no rows", NOW)
        alerts.alert("m", "drift", "drifted", NOW)
        alerts.end_failures("train_m")
        causes = [row["cause"] for row in alerts.rows("m")]
    assert causes == ["train_mm.validate failed: no rows", "drift"]
