"""Receivers of alerts that speak the protocol of each service."""

import ssl
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from mlflow_server.alerts import DriftAlert

MODEL = "customer_churn_model"
MESSAGE = "bad: total_spend_30d: PSI 0.31; retrain"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DRIFT = DriftAlert("total_spend_30d", "data_drift", "significant", 0.31, NOW, MESSAGE)
SEVERITIES = {"moderate": "info", "significant": "warning", "critical": "critical"}
"""Ours, and what they are to PagerDuty."""


DRIFTS = [replace(DRIFT, severity=severity, version="1") for severity in SEVERITIES]


ERROR = f"OSError: {'no disk ' * 400}"
"""Longer than PagerDuty takes."""


MARKUP = (
    "total <NA> & <b>x</b>, <!channel> <at>all</at> *all* _of_ @everyone @**all** <@U1> "
    "[it](http://evil.example)\nsecond line"
)
"""A text with signs that services take for markup."""


SLACK_PATH = "/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7"
ROUTING_KEY = "R" * 32
TEAMS_PATH = "/workflows/W123"
TELEGRAM_TOKEN = "123456789:abcdefg_hijklmnop"
NAMES = (
    "DNS:hooks.slack.com,DNS:events.pagerduty.com,DNS:api.telegram.org,"
    "DNS:discord.com,DNS:open.feishu.cn"
)
CERTIFY = f"""
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test
-addext subjectAltName=IP:127.0.0.1,{NAMES}
"""


@contextmanager
def serving(server):
    """Have a server answer; give the list of what arrives."""
    with server:
        server.received = []
        work = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        work.start()
        yield server.received
        server.shutdown()


def encrypt(server, certificate):
    """Have a server speak TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)


@pytest.fixture
def certificate(tmp_path):
    """Path of a certificate with its key; beside it is `authority.pem`, which vouches for it."""
    path = tmp_path / "certificate.pem"
    authority = tmp_path / "authority.pem"
    command = [*CERTIFY.split(), "-keyout", path, "-out", authority]
    subprocess.run(command, check=True, capture_output=True)
    with path.open("a") as file:
        file.write(authority.read_text())
    return path
