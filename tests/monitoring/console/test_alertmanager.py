"""Alerts through a real Prometheus and a real Alertmanager, with what is shipped for both."""

import json
import signal
import subprocess
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import yaml

from core.project import CLONE, ENV_FILE
from core.settings import Settings
from mlflow_server.alerts import Alerts
from tests.conftest import unused_port, wait_until
from tests.support.monitoring.late_events import late_events
from tests.support.serving.console import WATCH, console
from tests.support.tools.alert_receivers import serving
from tests.support.tools.prometheus import (
    SHIPPED,
    Alertmanager,
    programs,
    prometheus_server,
    stop,
)

pytestmark = pytest.mark.journey

SCRAPED = (8000, 8001)
"""Ports of serving and of the console, as shipped."""
SILENT_SECONDS = 5
"""Five times as long as Alertmanager waits between two messages of a group."""


class Receiver(BaseHTTPRequestHandler):
    """A team's webhooks: of Alertmanager, as Slack's, and of Gyre."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = 500 if self.server.is_broken else 200
        self.server.received.append((self.path, status, body))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


class Team:
    """What arrived at a team."""

    def __init__(self, server, received):
        self.server = server
        self.address = f"127.0.0.1:{server.server_port}"
        self.received = received

    def break_down(self, *, is_broken):
        self.server.is_broken = is_broken

    def refused(self):
        return [body for _, status, body in self.received if status != 200]

    def told(self, path="/slack"):
        """The messages that it took: title and text."""
        bodies = [
            body
            for place, status, body in self.received
            if place.startswith(path) and status == 200
        ]
        if path == "/gyre":
            return [(body["title"], body["message"]) for body in bodies]
        attachments = [body["attachments"][0] for body in bodies]
        return [(each["title"].strip(), each["text"]) for each in attachments]

    def told_about(self, words):
        return [title for title, text in self.told() if words in f"{title} {text}"]


@contextmanager
def team_of():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.is_broken = False
    with serving(server) as received:
        yield Team(server, received)


@pytest.fixture
def team():
    with team_of() as team:
        yield team


@pytest.fixture
def alertmanager(team, tmp_path):
    return Alertmanager(tmp_path, f"http://{team.address}/slack")


def test_the_shipped_configuration_is_valid():
    command = [
        programs("prometheus-alertmanager", "amtool") / "amtool",
        "check-config",
        SHIPPED / "alertmanager.yml",
    ]
    subprocess.run(command, check=True)


def test_compose_starts_it_with_prometheus_which_sends_to_it():
    services = yaml.safe_load((CLONE / "deploy" / "compose.yaml").read_text())[
        "services"
    ]
    (alertmanager, prometheus) = (services["alertmanager"], services["prometheus"])
    assert alertmanager["profiles"] == prometheus["profiles"]
    assert alertmanager["secrets"] == ["alertmanager_url"]
    config = yaml.safe_load((SHIPPED / "compose.yml").read_text())
    ((targets,),) = [
        each["static_configs"] for each in config["alerting"]["alertmanagers"]
    ]
    assert targets["targets"] == ["alertmanager:9093"]


def test_what_is_down_is_told_once_by_a_receiver_that_fails_and_an_alertmanager_that_dies(
    team, alertmanager, tmp_path
):
    nobody = {8000: unused_port(), 8001: unused_port(), 9093: alertmanager.port}
    team.break_down(is_broken=True)
    with prometheus_server(tmp_path, nobody):
        with alertmanager.running() as process:
            wait_until("a first message", lambda: len(team.refused()) > 1)
            process.send_signal(signal.SIGKILL)
            process.wait(600)
        with alertmanager.running() as process:
            team.break_down(is_broken=False)
            wait_until(
                "both",
                lambda: all(team.told_about(f":{nobody[port]} ") for port in SCRAPED),
            )
            time.sleep(SILENT_SECONDS)
            stop(process)
        messages = team.told()
        with alertmanager.running():
            wait_until("the alert", lambda: "GyreDown" in alertmanager.alerts())
            time.sleep(SILENT_SECONDS)
    assert team.told() == messages
    # One at once, or a second one where the other target was asked later.
    assert len(messages) <= len(SCRAPED)
    title, text = messages[-1]
    assert title == "firing: GyreDown"
    for port in SCRAPED:
        down = (
            f"127.0.0.1:{nobody[port]} gives no metrics: serving or the console is down"
        )
        assert f"{down}. make status; without the console predictions go on" in text


@dataclass
class Watched:
    """A home whose incidents Gyre and rules see, and whom they tell."""

    settings: Settings
    team: Team
    alertmanager: Alertmanager
    prometheus: str

    def has_told(self, name):
        return bool(self.team.told_about(name))

    def of_gyre(self):
        return [title for title, text in self.team.told("/gyre") if "late" in text]

    def of_alertmanager(self):
        return self.team.told_about("late")

    def firing(self):
        """How often Prometheus shows the rule of events that wait."""
        query = {"query": 'ALERTS{alertname="GyreEventsWait",alertstate="firing"}'}
        url = f"{self.prometheus}/api/v1/query"
        answer = httpx.get(url, params=query, timeout=60).json()
        return len(answer["data"]["result"])


@contextmanager
def watched(rig, home, *, has_address):
    """has_address: Whether Gyre itself has the address of the team."""
    home.mkdir()
    with team_of() as team:
        addresses = f"json://{team.address}/gyre" if has_address else ""
        (home / ENV_FILE).write_text(f"GYRE_ALERT_URLS={addresses}\n")
        alertmanager = Alertmanager(home, f"http://{team.address}/slack")
        own_port = unused_port()
        ports = {8000: unused_port(), 8001: own_port, 9093: alertmanager.port}
        with (
            alertmanager.running(),
            console(rig, constants={WATCH: 1.0}, home=home, console_port=own_port),
            prometheus_server(home, ports) as address,
        ):
            settings = rig.settings.model_copy(update={"home": home})
            yield Watched(settings, team, alertmanager, address)


def test_an_incident_that_rules_and_gyre_see_is_told_once(rig, served, tmp_path):
    """By Gyre; where it has no address, by Alertmanager. A mute ends the alert there."""
    with (
        late_events(rig.settings),
        watched(rig, tmp_path / "address", has_address=True) as gyre_tells,
        watched(rig, tmp_path / "none", has_address=False) as rule_tells,
    ):
        for home in (gyre_tells, rule_tells):
            alerts = home.alertmanager.alerts
            wait_until("GyreEventsWait", lambda: "GyreEventsWait" in alerts())  # noqa: B023
            assert alerts()["GyreEventsWait"] == ["nobody"]
            wait_until("GyreDown", lambda: home.has_told("GyreDown"))  # noqa: B023
        wait_until("the incident", gyre_tells.of_gyre)
        wait_until("the incident", rule_tells.of_alertmanager)
        time.sleep(SILENT_SECONDS)
        assert gyre_tells.of_gyre() == ["Gyre: late"]
        assert gyre_tells.of_alertmanager() == []
        assert rule_tells.of_gyre() == []
        assert rule_tells.of_alertmanager() == ["firing: GyreIncident late"]
        mute(rule_tells.settings)
        wait_until("its end", lambda: len(rule_tells.of_alertmanager()) > 1)
        assert rule_tells.of_alertmanager()[1:] == ["resolved: GyreIncident late"]
        assert gyre_tells.firing() == rule_tells.firing() == 1


def mute(settings):
    now = datetime.now(UTC)
    with closing(Alerts(settings)) as alerts:
        (row,) = alerts.open_rows(now, "late")
        until = now + timedelta(hours=1)
        alerts.silence(row["sequence"], now, who="ann", why="known", until=until)
