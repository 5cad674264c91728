"""An empty installation for each test, and what is read or broken in one."""

import json

import pytest

from tests.conftest import new_settings


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path)


def alerts(settings, model, cause=""):
    """What went out about a model, of causes with this text."""
    path = settings.home / "logs" / "alerts.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        alert
        for alert in map(json.loads, lines)
        if alert["model"] == model and cause in alert["cause"]
    ]


def tear(folder):
    """Leave a table there that cannot be read."""
    log = folder / "_delta_log"
    log.mkdir(parents=True)
    (log / f"{0:020}.json").write_text("{")
