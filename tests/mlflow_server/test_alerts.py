"""Alerts through real receivers: a webhook and a mail server of the test's own."""

from __future__ import annotations

import json
import socketserver
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import sqlalchemy as sql
from sqlalchemy.schema import DropSchema

from mlflow_server.alerts import DriftAlert, alert, deliver, note
from mlflow_server.records import QUIET, Records, is_open
from tests.conftest import new_settings, unused_port
from tests.feature_repo.test_postgres import postgres, server_log  # noqa: F401  (fixtures)

MODEL, CAUSE = "customer_churn_model", "drift of version 1, labels up to 2026-08-01"
MESSAGE = "bad: total_spend_30d: PSI 0.31; retrain"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


class Webhook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(json.loads(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


class Mail(socketserver.StreamRequestHandler):
    """As much of RFC 5321 as one mail takes."""

    def handle(self):
        self.say("220 test")
        for line in self.rfile:
            verb = line[:4].upper().strip()
            if verb == b"DATA":
                self.say("354 go on")
                self.server.received.append(
                    b"".join(iter(self.rfile.readline, b".\r\n"))
                )
            self.say("221 bye" if verb == b"QUIT" else "250 fine")
            if verb == b"QUIT":
                return

    def say(self, text):
        self.wfile.write(f"{text}\r\n".encode())


class MailServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


@contextmanager
def receiving(kind, handler, port=0):
    """Port and list of what arrived."""
    with kind(("127.0.0.1", port), handler) as server:
        server.received = []
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1], server.received
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def records(tmp_path):
    with closing(Records(new_settings(tmp_path))) as opened:
        yield opened


def seen(tmp_path, records, urls, times=1, cause=CAUSE):
    settings = new_settings(tmp_path, alert_urls=urls)
    return [
        alert(settings, records, MODEL, cause, MESSAGE, NOW + timedelta(hours=hour))
        for hour in range(times)
    ]


def test_twenty_sightings_are_one_alert_with_a_count(tmp_path, records):
    with receiving(HTTPServer, Webhook) as (port, received):
        went_out = seen(tmp_path, records, f"json://127.0.0.1:{port}", 20)
    assert went_out == [True] + [False] * 19
    (sent,) = received
    assert sent["title"] == f"Gyre: {MODEL}"
    assert MESSAGE in sent["message"]
    assert CAUSE in sent["message"]
    (row,) = records.alerts(MODEL)
    assert (row["count"], row["delivered"]) == (20, True)
    assert row["first"] < row["last"]


def test_another_cause_is_another_alert(tmp_path, records):
    with receiving(HTTPServer, Webhook) as (port, received):
        seen(tmp_path, records, f"json://127.0.0.1:{port}")
        seen(tmp_path, records, f"json://127.0.0.1:{port}", cause="harm of version 2")
    assert len(received) == 2


def test_a_failed_delivery_is_tried_again_when_seen_again(tmp_path, records):
    port = unused_port()
    url = f"json://127.0.0.1:{port}"
    assert seen(tmp_path, records, url, 2) == [False, False]
    assert records.alerts(MODEL)[0]["delivered"] is False
    with receiving(HTTPServer, Webhook, port) as (_, received):
        assert seen(tmp_path, records, url, 2) == [True, False]
    assert len(received) == 1
    assert records.alerts(MODEL)[0]["count"] == 4


def test_what_many_see_at_once_one_delivers(tmp_path):
    """Each with a database connection of its own, and nothing made before."""
    together = threading.Barrier(8)

    def see(number):
        together.wait(600)
        at = NOW + timedelta(milliseconds=number)
        with closing(Records(new_settings(tmp_path))) as records:
            return alert(settings, records, MODEL, CAUSE, MESSAGE, at)

    with (
        receiving(HTTPServer, Webhook) as (port, received),
        ThreadPoolExecutor(8) as pool,
    ):
        settings = new_settings(tmp_path, alert_urls=f"json://127.0.0.1:{port}")
        assert sorted(pool.map(see, range(8))) == [False] * 7 + [True]
    assert len(received) == 1
    with closing(Records(settings)) as records:
        assert [(row["count"], row["delivered"]) for row in records.alerts(MODEL)] == [
            (8, True)
        ]


def test_a_mail_and_a_webhook_get_the_same_alert(tmp_path, records):
    with (
        receiving(HTTPServer, Webhook) as (web, posted),
        receiving(MailServer, Mail) as (mail, mailed),
    ):
        address = (
            f"mailto://127.0.0.1:{mail}/?from=gyre@test.example&to=team@test.example"
        )
        urls = f"json://127.0.0.1:{web} {address}&mode=insecure"
        assert seen(tmp_path, records, urls) == [True]
    letter = message_from_bytes(mailed[0])
    assert letter["To"] == "team@test.example"
    assert MODEL in str(letter["Subject"])
    body = letter.get_payload(decode=True) or letter.get_payload(0).get_payload(
        decode=True
    )
    assert MESSAGE.encode() in body
    assert len(posted) == 1


def test_without_an_address_alerts_are_lines_of_a_file(tmp_path, records):
    assert seen(tmp_path, records, "", 3) == [True, False, False]
    (line,) = (tmp_path / "logs" / "alerts.log").read_text().splitlines()
    assert json.loads(line) == {
        "time": NOW.isoformat(), "model": MODEL, "cause": CAUSE, "message": MESSAGE,
    }  # fmt: skip


DRIFT = DriftAlert("total_spend_30d", "data_drift", "significant", 0.31, NOW, MESSAGE)


def test_what_a_monitor_alerts_of_has_its_fields_in_row_file_and_message(
    tmp_path, records
):
    settings = new_settings(tmp_path)
    assert alert(settings, records, MODEL, CAUSE, DRIFT, NOW)
    fields = {
        "feature": "total_spend_30d", "drift_type": "data_drift", "severity": "significant",
        "psi_score": 0.31, "detected_at": "2026-11-20T12:00:00Z", "message": MESSAGE,
    }  # fmt: skip
    assert json.loads(records.alerts(MODEL)[0]["details"]) == fields
    (line,) = (tmp_path / "logs" / "alerts.log").read_text().splitlines()
    assert json.loads(line).items() >= fields.items()
    with receiving(HTTPServer, Webhook) as (port, received):
        settings = new_settings(tmp_path, alert_urls=f"json://127.0.0.1:{port}")
        alert(settings, records, MODEL, "another", DRIFT, NOW)
    for part in (
        "feature: total_spend_30d",
        "psi_score: 0.31",
        "severity: significant",
        MESSAGE,
    ):
        assert part in received[0]["message"]


def test_a_cause_that_was_not_seen_for_three_hours_is_another_incident(
    tmp_path, records
):
    settings = new_settings(tmp_path)
    seen(tmp_path, records, "", 3)
    last = NOW + timedelta(hours=2)
    assert not alert(settings, records, MODEL, CAUSE, MESSAGE, last + QUIET)
    again = last + 2 * QUIET + timedelta(seconds=1)
    assert alert(settings, records, MODEL, CAUSE, MESSAGE, again)
    rows = records.alerts(MODEL)
    assert [row["count"] for row in rows] == [4, 1]
    assert [is_open(row, again) for row in rows] == [False, True]


def test_what_was_not_delivered_is_shown_and_any_later_look_delivers_it_once(
    tmp_path, records
):
    port = unused_port()
    url = f"json://127.0.0.1:{port}"
    seen(tmp_path, records, url)
    note(records, MODEL, "killed after", DRIFT, NOW)  # and before it told anybody
    assert [row["cause"] for row in records.undelivered(MODEL)] == [
        CAUSE,
        "killed after",
    ]
    settings = new_settings(tmp_path, alert_urls=url)
    assert deliver(settings, records, MODEL, NOW) == 0, "nobody is there"
    with (
        receiving(HTTPServer, Webhook, port) as (_, received),
        ThreadPoolExecutor(4) as pool,
    ):
        at = [NOW + timedelta(hours=2, milliseconds=n) for n in range(4)]
        went = pool.map(lambda each: deliver(settings, records, MODEL, each), at)
        assert sum(went) == 2
    assert len(received) == 2
    assert records.undelivered(MODEL) == []
    assert {row["count"] for row in records.alerts(MODEL)} == {1}, (
        "a try is no sighting"
    )


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


def test_a_long_cause_is_one_alert_and_one_that_differs_at_its_end_is_another(anywhere):
    causes = [f"skew of version 1: {'a_feature, ' * 100}{end}" for end in ("a", "b")]
    with closing(Records(anywhere)) as records:
        for cause in causes:
            assert alert(anywhere, records, MODEL, cause, MESSAGE, NOW)
            assert not alert(
                anywhere, records, MODEL, cause, MESSAGE, NOW + timedelta(hours=1)
            )
        rows = {row["cause"]: row for row in records.alerts(MODEL)}
        assert rows.keys() == set(causes), "as it was said, in full"
        note(records, MODEL, causes[0], DRIFT, NOW + timedelta(hours=5))
        assert deliver(anywhere, records, MODEL, NOW + timedelta(hours=5)) == 1, (
            "it begins anew"
        )


def test_of_eight_that_see_a_cause_for_the_first_time_at_once_each_counts_in_one_row(
    anywhere,
):
    together = threading.Barrier(8)

    def look(_):
        with closing(Records(anywhere)) as records:
            for n in range(15):
                together.wait(600)
                records.count_alert(MODEL, f"cause {n}", MESSAGE, NOW)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look, range(8)))
    with closing(Records(anywhere)) as records:
        assert [row["count"] for row in records.alerts(MODEL)] == [8] * 15
