"""Alerts through a real receiver: a webhook of the test's own."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

from mlflow_server.alerts import QUIET, Alerts, DriftAlert, is_open
from tests.conftest import new_settings, unused_port

MODEL = "customer_churn_model"
CAUSE = f"skew of version 1: {'a_feature, ' * 100}"
MESSAGE = "bad: total_spend_30d: PSI 0.31; retrain"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DRIFT = DriftAlert("total_spend_30d", "data_drift", "significant", 0.31, NOW, MESSAGE)
FIELDS = {
    "feature": "total_spend_30d", "drift_type": "data_drift", "severity": "significant",
    "psi_score": 0.31, "detected_at": "2026-11-20T12:00:00Z", "message": MESSAGE,
}  # fmt: skip


class Webhook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(json.loads(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def receiving(port=0):
    """Address of a webhook, and the list of what arrived."""
    with HTTPServer(("127.0.0.1", port), Webhook) as server:
        server.received = []
        work = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        work.start()
        yield f"json://127.0.0.1:{server.server_port}", server.received
        server.shutdown()


def opened(folder, urls):
    return closing(Alerts(new_settings(folder, alert_urls=urls)))


def test_a_cause_alerts_once_until_it_has_not_been_seen_for_three_hours(tmp_path):
    with receiving() as (url, received), opened(tmp_path, url) as alerts:
        for hour in range(20):
            moment = NOW + timedelta(hours=hour)
            assert alerts.alert(MODEL, CAUSE, DRIFT, moment) == (hour == 0)
        assert not alerts.alert(MODEL, CAUSE, DRIFT, moment + QUIET)
        (row,) = alerts.rows(MODEL)
        (sent,) = received
        later = moment + 2 * QUIET + timedelta(seconds=1)
        assert alerts.alert(MODEL, CAUSE, DRIFT, later)
        assert [row["count"] for row in alerts.rows(MODEL)] == [21, 1]
        assert [is_open(row, later) for row in alerts.rows(MODEL)] == [False, True]
    assert row["delivered"]
    assert row["first"] < row["last"]
    assert json.loads(row["details"]).items() >= FIELDS.items()
    assert sent["title"] == f"Gyre: {MODEL}"
    for part in ("psi_score: 0.31", "severity: significant", MESSAGE, CAUSE):
        assert part in sent["message"]


def test_exactly_one_of_eight_processes_delivers_an_incident_and_each_counts_it(
    empty_database,
):
    """Each with a database connection of its own, and no table exists before."""
    together = threading.Barrier(8)
    causes = [f"{CAUSE} of {end}" for end in "ab"]

    def see(with_url):
        deliveries = 0
        with closing(Alerts(with_url)) as alerts:
            for cause in causes:
                together.wait(600)
                deliveries += alerts.alert(MODEL, cause, MESSAGE, NOW)
        return deliveries

    with receiving() as (url, received), ThreadPoolExecutor(8) as pool:
        with_url = empty_database.model_copy(update={"alert_urls": url})
        deliveries = [*pool.map(see, [with_url] * 8)]
    assert sum(deliveries) == len(received) == 2
    with closing(Alerts(empty_database)) as alerts:
        counts = {row["cause"]: row["count"] for row in alerts.rows(MODEL)}
    assert counts == dict.fromkeys(causes, 8)


def test_an_undelivered_alert_is_delivered_once_later(tmp_path):
    port = unused_port()
    with opened(tmp_path, f"json://127.0.0.1:{port}") as alerts:
        assert not alerts.alert(MODEL, CAUSE, MESSAGE, NOW)  # nobody listens
        alerts.note(MODEL, "a killed run", DRIFT, NOW)
        undelivered = alerts.rows(MODEL, delivered=False)
        assert [row["cause"] for row in undelivered] == [CAUSE, "a killed run"]
        with receiving(port) as (_, received), ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(lambda _: alerts.deliver(MODEL, NOW), range(4))) == 2
        assert len(received) == 2
        assert alerts.rows(MODEL, delivered=False) == []
        # A delivery is no sighting.
        assert {row["count"] for row in alerts.rows(MODEL)} == {1}


def test_the_end_of_one_failed_task_leaves_the_alerts_of_others(tmp_path):
    tasks = ("ingest.ingest_visits", "ingest.ingest_visits_old", "maintain.maintain")
    with opened(tmp_path, "") as alerts:
        for task in tasks:
            alerts.alert_failure("visits", task, "OSError: no disk", NOW)

        def open_tasks():
            return [row["cause"].split(" ")[0] for row in alerts.rows("visits")]

        alerts.end_failures("ingest", "ingest_visits")
        assert open_tasks() == ["ingest.ingest_visits_old", "maintain.maintain"]
        alerts.end_failures("ingest")
        assert open_tasks() == ["maintain.maintain"]
