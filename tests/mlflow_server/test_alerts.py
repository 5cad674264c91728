"""Alerts through real receivers: a webhook and a mail server of the test's own."""

import json
import os
import re
import subprocess
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from email import message_from_bytes, policy
from html import escape, unescape
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from urllib.parse import quote

import certifi
import pytest
import sqlalchemy as sql
from apprise import Apprise
from markdown_it import MarkdownIt

from core.errors import MonitoringError
from core.project import PROJECT
from mlflow_server.alerts import QUIET, Alerts, is_open, silence_text
from mlflow_server.chat_text import BREAK, text_for
from mlflow_server.database import open_database
from stack.environment import process_environment
from tests.conftest import BIN, new_settings, unused_port
from tests.support.tools.alert_receivers import (
    DRIFT,
    DRIFTS,
    ERROR,
    MARKUP,
    MESSAGE,
    MODEL,
    NOW,
    ROUTING_KEY,
    SEVERITIES,
    SLACK_PATH,
    TELEGRAM_TOKEN,
    certificate,  # noqa: F401  (a fixture)
    encrypt,
    serving,
)

CAUSE = f"skew of version 1: {'a_feature, ' * 100}"
FIELDS = {
    "feature": "total_spend_30d", "drift_type": "data_drift", "severity": "significant",
    "psi_score": 0.31, "detected_at": "2026-11-20T12:00:00Z", "message": MESSAGE,
}  # fmt: skip

UNMENTIONED = re.sub(r"[@<]|\](?=\()", rf"\g<0>{BREAK}", MARKUP)
"""What a chat shows of it: a mention, a tag or a link ends at a sign that nobody sees."""
NAMESPACES = "unshare --net --mount"
SEND = """
ip link set lo up
mount --bind "$HOSTS" /etc/hosts
exec python -m tests.mlflow_server.alert_services "$CERTIFICATE"
"""


class Webhook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(json.loads(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


PASSWORD = "a password"
LOGIN = b64encode(f"\0gyre\0{PASSWORD}".encode()).decode()
MAIL_ANSWERS = {
    "EHLO": "250-the test's\r\n250 AUTH PLAIN",
    "MAIL": "250 sender",
    "RCPT": "250 recipient",
    "DATA": "354 end with a dot",
    "QUIT": "221 bye",
}


class MailServer(StreamRequestHandler):
    """As much of SMTP (RFC 5321, RFC 4954) as a mail of a known user takes."""

    def handle(self):
        self.say("220 the test's")
        is_known = False
        command = ""
        while command != "QUIT":
            line = self.rfile.readline().decode().strip()
            command = line.partition(" ")[0].upper()
            if command == "AUTH":
                is_known = line.endswith(f" PLAIN {LOGIN}")
                self.say("235 welcome" if is_known else "535 unknown user or password")
            elif command == "MAIL" and not is_known:
                self.say("530 say who you are")
            else:
                self.say(MAIL_ANSWERS[command])
            if command == "DATA":
                lines = [*iter(self.rfile.readline, b".\r\n")]
                self.server.received.append(b"".join(lines))
                self.say("250 taken")

    def say(self, line):
        self.wfile.write(f"{line}\r\n".encode())


@contextmanager
def receiving(port=0):
    """Address of a webhook, and the list of what arrived."""
    server = HTTPServer(("127.0.0.1", port), Webhook)
    with serving(server) as received:
        yield f"json://127.0.0.1:{server.server_port}", received


@contextmanager
def receiving_mail(certificate):
    """Address of a mail server for a password, and the list of what arrived."""
    server = ThreadingTCPServer(("127.0.0.1", 0), MailServer)
    encrypt(server, certificate)
    place = f"127.0.0.1:{server.server_address[1]}/?mode=ssl"
    addresses = "from=gyre@test.example&to=team@test.example"

    def address(password=PASSWORD):
        return f"mailtos://gyre:{quote(password)}@{place}&{addresses}"

    with pytest.MonkeyPatch.context() as environment, serving(server) as received:
        environment.setenv("SSL_CERT_FILE", str(certificate.with_name("authority.pem")))
        yield address, received


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


def test_a_mail_says_what_a_webhook_is_told(tmp_path, certificate):
    drift = replace(DRIFT, version="1", severity="critical")
    with (
        receiving() as (url, posts),
        receiving_mail(certificate) as (address, mails),
        opened(tmp_path, f"{url} {address()}") as alerts,
    ):
        assert alerts.alert(MODEL, CAUSE, drift, NOW)
    (post,) = posts
    (mail,) = [message_from_bytes(mail, policy=policy.default) for mail in mails]
    assert post["type"] == "failure"
    assert mail["Subject"] == post["title"] == f"Gyre: {MODEL}"
    assert mail["To"].addresses[0].addr_spec == "team@test.example"
    text = " ".join(mail.get_body(("plain",)).get_content().split())
    assert text == " ".join(post["message"].split())
    for part in ("version: 1", "severity: critical", MESSAGE, CAUSE):
        assert part in text


def test_a_mail_server_that_refuses_the_password_has_not_taken_an_alert(
    tmp_path, certificate
):
    with receiving_mail(certificate) as (address, mails):
        with opened(tmp_path, address("another")) as alerts:
            assert not alerts.alert(MODEL, CAUSE, DRIFT, NOW)
        assert mails == []
        with opened(tmp_path, address()) as alerts:
            assert alerts.deliver(MODEL, NOW) == 1
        assert len(mails) == 1


@pytest.fixture
def send(tmp_path, certificate):
    """Send alerts to an address from a network of its own, where the test is Slack and PagerDuty."""
    allowed = subprocess.run([*NAMESPACES.split(), "true"], check=False)
    if allowed.returncode:
        pytest.skip(f"{NAMESPACES}: not permitted; run the test as root")
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "127.0.0.1 localhost hooks.slack.com events.pagerduty.com api.telegram.org "
        "discord.com open.feishu.cn\n"
    )

    own_authority = certificate.with_name("authority.pem")

    def send(url, authority=own_authority):
        settings = new_settings(tmp_path / "home")
        variables = {
            "GYRE_ALERT_URLS": url,
            "HOSTS": str(hosts),
            "CERTIFICATE": str(certificate),
            "REQUESTS_CA_BUNDLE": str(authority),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            [*NAMESPACES.split(), "sh", "-euc", SEND],
            cwd=PROJECT,
            env=process_environment(settings) | variables,
            capture_output=True,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return send


@pytest.mark.nightly
def test_slack_is_told_of_each_alert(send):
    sent = send(f"https://hooks.slack.com{SLACK_PATH}")
    assert (sent["delivered"], sent["waiting"]) == (len(DRIFTS), 0)
    assert {request["status"] for request in sent["requests"]} == {200}
    messages = [request["body"]["attachments"][0] for request in sent["requests"]]
    assert {message["title"] for message in messages} == {f"Gyre: {MODEL}"}
    for severity, message in zip(SEVERITIES, messages, strict=False):
        for part in (MESSAGE, "version: 1", f"severity: {severity}"):
            assert part in message["text"]
    assert ERROR.strip() in messages[3]["text"]
    assert escape(UNMENTIONED, quote=False) in messages[4]["text"]
    colors = [message["color"] for message in messages]
    assert len({*colors[:3]}) == 3
    assert colors[3] == colors[1]


@pytest.mark.nightly
def test_pagerduty_is_told_of_each_alert_with_its_severity(send):
    sent = send(f"pagerduty://{ROUTING_KEY}@api-key/gyre")
    assert (sent["delivered"], sent["waiting"]) == (len(DRIFTS), 0)
    assert {request["status"] for request in sent["requests"]} == {202}
    payloads = [request["body"]["payload"] for request in sent["requests"]]
    severities = [payload["severity"] for payload in payloads]
    assert severities == [*SEVERITIES.values(), "warning", "warning"]
    assert {payload["source"] for payload in payloads} == {"gyre"}
    for payload in payloads[:3]:
        assert payload["summary"].startswith(f"Gyre: {MODEL}\r\n{MESSAGE} (")
        assert "version: 1" in payload["summary"]
    long_summary = payloads[3]["summary"]
    assert long_summary.startswith(f"Gyre: {MODEL}\r\ntrain.fit failed: {ERROR[:500]}")


@pytest.mark.nightly
def test_telegram_is_told_a_text_and_no_markup(send):
    sent = send(f"tgram://{TELEGRAM_TOKEN}/12315544/")
    messages = [
        request["body"] for request in sent["requests"] if "text" in request["body"]
    ]
    assert {request["status"] for request in sent["requests"]} == {200}
    text = messages[-1]["text"]
    for part in (
        f"&lt;{BREAK}NA&gt; &amp; &lt;{BREAK}b&gt;x&lt;{BREAK}/b&gt;",
        f"&lt;{BREAK}!channel&gt;",
        "second line",
    ):
        assert part in text


@pytest.mark.nightly
def test_teams_is_told_a_text_and_no_markup(send):
    sent = send("workflow://127.0.0.1:443/W123/signature")
    assert {request["status"] for request in sent["requests"]} == {202}
    (attachment,) = sent["requests"][-1]["body"]["attachments"]
    text = attachment["content"]["body"][-1]["text"]
    assert "mention" not in json.dumps(attachment)
    assert " ".join(UNMENTIONED.split()) in text_of_markdown(text)


@pytest.mark.nightly
def test_discord_is_told_a_text_that_mentions_nobody(send):
    sent = send(f"discord://123456789012345678/{'a' * 64}")
    assert {request["status"] for request in sent["requests"]} == {204}
    text = sent["requests"][-1]["body"]["content"]
    assert " ".join(UNMENTIONED.split()) in text_of_markdown(text)


@pytest.mark.nightly
def test_feishu_is_told_a_text_that_mentions_nobody(send):
    sent = send(f"feishu://{'a' * 36}")
    assert {request["status"] for request in sent["requests"]} == {200}
    assert UNMENTIONED in sent["requests"][-1]["body"]["content"]["text"]


def text_of_markdown(text):
    """Return what a person reads, by a parser of CommonMark; tags of markup stay in it."""
    html = MarkdownIt("commonmark").render(text)
    lines = re.sub(r"</?p>", " ", html)
    return " ".join(unescape(lines).split())


def test_mattermost_is_told_a_text_and_no_markup(tmp_path):
    with receiving() as (webhook, received):
        url = webhook.replace("json:", "mmost:") + f"/{'a' * 26}"
        with opened(tmp_path, url) as alerts:
            assert alerts.alert(MODEL, CAUSE, MARKUP, NOW)
    (message,) = received
    shown = text_of_markdown(message["text"])
    assert " ".join(UNMENTIONED.split()) in shown
    for mention in ("@everyone", "<@", "<!", "<at"):
        assert mention not in shown


def test_a_webhook_is_told_each_sign_as_it_is(tmp_path):
    with receiving() as (url, received), opened(tmp_path, url) as alerts:
        assert alerts.alert(MODEL, CAUSE, MARKUP, NOW)
    (message,) = received
    assert MARKUP in message["message"]


@pytest.mark.parametrize(
    "url",
    [
        f"guilded://123456789012345678/{'a' * 64}",
        f"lark://{'a' * 36}",
        f"rocket://{'a' * 12}/{'b' * 24}@h/#general",
        "ryver://org/abcdefghijk1234",
        f"zulip://bot@org/{'a' * 32}/general",
        f"dingtalk://{'a' * 32}",
        "irc://host/channel",
        f"discord://123456789012345678/{'a' * 64}?format=markdown",
    ],
)
def test_a_text_for_a_service_mentions_nobody(url):
    (service,) = Apprise(url)
    text = text_for(service, MARKUP)
    # Of a mention, a tag and a link of each service.
    assert not re.search(r"@\w|@\*|<[\w@!/]|\]\(", text)
    assert text.replace(BREAK, "").replace("\\", "") == MARKUP


def test_a_mail_shows_signs_of_markup_and_lines_as_they_are(tmp_path, certificate):
    with (
        receiving_mail(certificate) as (address, mails),
        opened(tmp_path, address()) as alerts,
    ):
        assert alerts.alert(MODEL, CAUSE, MARKUP, NOW)
    (mail,) = [message_from_bytes(mail, policy=policy.default) for mail in mails]
    body = mail.get_body(("html", "plain"))
    shown = body.get_content()
    if body.get_content_subtype() == "html":
        shown = unescape(re.sub(r"<br\s*/?>", "\n", shown))
    for line in MARKUP.splitlines():
        assert line in shown.replace("\r\n", "\n").replace("=\n", "")


@pytest.mark.nightly
def test_a_service_whose_certificate_is_unknown_is_told_nothing(send):
    sent = send(f"https://hooks.slack.com{SLACK_PATH}", authority=certifi.where())
    assert sent == {"delivered": 0, "waiting": len(DRIFTS) + 2, "requests": []}


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
        undelivered = alerts.undelivered(MODEL, NOW)
        assert [row["cause"] for row in undelivered] == [CAUSE, "a killed run"]
        with receiving(port) as (_, received), ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(lambda _: alerts.deliver(MODEL, NOW), range(4))) == 2
        assert len(received) == 2
        assert alerts.undelivered(MODEL, NOW) == []
        # A delivery is no sighting.
        assert {row["count"] for row in alerts.rows(MODEL)} == {1}


HOUR = timedelta(hours=1)
ANN = {"who": "ann", "why": "known"}


def number_of(alerts, at):
    """Of the only open incident."""
    (row,) = alerts.open_rows(at)
    return row["sequence"]


def test_a_muted_cause_is_counted_and_delivered_after_its_mute_if_it_goes_on(
    empty_database,
):
    with receiving() as (url, received):
        settings = empty_database.model_copy(update={"alert_urls": url})
        with closing(Alerts(settings)) as alerts:
            assert alerts.alert(MODEL, CAUSE, DRIFT, NOW)
            until = NOW + 24 * HOUR
            alerts.silence(number_of(alerts, NOW), NOW, until=until, **ANN)
            # It is not seen for 4 hours: what comes then is another incident of the same cause.
            for hour in (1, 2, 6, 8, 10, 13, 16, 19, 22):
                assert not alerts.alert(MODEL, CAUSE, DRIFT, NOW + hour * HOUR)
            assert [row["count"] for row in alerts.rows(MODEL)] == [3, 7]
            other = "another cause"
            assert alerts.alert(MODEL, other, MESSAGE, NOW + 22 * HOUR)
            assert not alerts.deliver(MODEL, until + HOUR), "nobody has seen it since"
            assert alerts.alert(MODEL, CAUSE, DRIFT, until + HOUR)
            assert not alerts.alert(MODEL, CAUSE, DRIFT, until + 2 * HOUR)
    texts = [request["message"] for request in received]
    assert [other in text for text in texts] == [False, True, False]


def test_an_incident_that_was_told_before_its_mute_is_told_again_after_it(tmp_path):
    with receiving() as (url, received), opened(tmp_path, url) as alerts:
        assert alerts.alert(MODEL, CAUSE, DRIFT, NOW)
        number = number_of(alerts, NOW)
        alerts.silence(number, NOW, until=NOW + HOUR, **ANN)
        assert not alerts.alert(MODEL, CAUSE, DRIFT, NOW + HOUR / 2)
        assert alerts.alert(MODEL, CAUSE, DRIFT, NOW + HOUR)
        # A mute until now ends it at once.
        alerts.silence(number, NOW + HOUR, until=NOW + 9 * HOUR, **ANN)
        alerts.silence(number, NOW + HOUR, until=NOW + HOUR, **ANN)
        assert alerts.alert(MODEL, CAUSE, DRIFT, NOW + 2 * HOUR)
    assert len(received) == 3


def test_an_acknowledged_incident_is_not_delivered_again_and_the_next_is(tmp_path):
    dead = f"json://127.0.0.1:{unused_port()}"
    with opened(tmp_path, dead) as alerts:
        assert not alerts.alert(MODEL, CAUSE, DRIFT, NOW)
        alerts.silence(number_of(alerts, NOW), NOW, **ANN)
        assert alerts.undelivered(MODEL, NOW) == [], "a person knows"
        (row,) = alerts.rows(MODEL)
        text = "acknowledged at 2026-11-20 12:00 UTC by ann: known"
        assert silence_text(row, NOW) == text
        later = NOW + 2 * QUIET
        alerts.note(MODEL, CAUSE, DRIFT, later)
        assert [silence_text(row, later) for row in alerts.rows(MODEL)] == [text, ""]
        assert len(alerts.undelivered(MODEL, later)) == 1


def test_only_an_open_incident_is_silenced_and_the_newest_word_counts(tmp_path):
    with opened(tmp_path, "") as alerts:
        alerts.alert(MODEL, CAUSE, DRIFT, NOW)
        number = number_of(alerts, NOW)
        for at, some_number in ((NOW, number + 1), (NOW + 2 * QUIET, number)):
            with pytest.raises(MonitoringError, match=f"no incident {some_number} is"):
                alerts.silence(some_number, at, **ANN)
        alerts.silence(number, NOW, until=NOW + HOUR, who="bob", why="")
        (row,) = alerts.rows(MODEL)
        assert silence_text(row, NOW) == "muted until 2026-11-20 13:00 UTC by bob"
        alerts.silence(number, NOW, **ANN)
        (row,) = alerts.rows(MODEL)
        assert (row["who"], row["until"], row["delivered"]) == ("ann", None, True)
        assert alerts.forget(NOW + HOUR) == 1
        alerts.note(MODEL, CAUSE, DRIFT, NOW)
        assert alerts.rows(MODEL)[0]["who"] is None, "its silence is deleted, too"


def test_a_database_of_before_there_were_silences_gets_their_table(empty_database):
    with closing(Alerts(empty_database)) as alerts:
        alerts.note(MODEL, CAUSE, DRIFT, NOW)
    engine = open_database(empty_database)
    with engine.begin() as connection:
        connection.execute(sql.text("DROP TABLE silences"))
    engine.dispose()
    with closing(Alerts(empty_database)) as alerts:
        alerts.silence(number_of(alerts, NOW), NOW, **ANN)
        assert alerts.rows(MODEL)[0]["who"] == "ann"


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
