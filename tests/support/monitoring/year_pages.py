"""A console on a year of monitoring runs, and its pages."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from core.spec import load_spec
from monitoring.console.panels.minutes import KEPT_MINUTES
from tests.conftest import new_settings
from tests.support.monitoring.year import fill
from tests.support.serving.console import console as console_beside

SPEC = load_spec("customer_churn_model")
MODEL = f"/status/{SPEC.name}"
TABS = tuple(
    f"{MODEL}?tab={tab}" for tab in ("checks", "versions", "predictions", "ledger")
)
DRIFT = f"{MODEL}?check=psi/total_orders_30d"
PAGES = ("/", MODEL, DRIFT, *TABS, f"/data/{SPEC.dataset}", "/metrics")


def console(home, python=None):
    """A console alone: nothing else of its stack runs. The client, and the process.

    python: By default the preloaded one.
    """
    settings = new_settings(home, demo_start=None)
    beside = SimpleNamespace(settings=settings, folder=home.parent)
    return console_beside(beside, python)


@pytest.fixture(scope="module")
def year(tmp_path_factory):
    home = tmp_path_factory.mktemp("year") / "home"
    fill(new_settings(home), SPEC, datetime.now(UTC))
    keep_minutes(home)
    return home


def keep_minutes(home):
    """Keep 24 hours of figures by minute, as the console does; in their middle serving was silent."""
    now = int(datetime.now(UTC).timestamp() // 60)
    rows = {}
    for age in reversed(range(KEPT_MINUTES)):
        row = {"lag/orders": [0.1 if age else 75.0]}
        if not 600 < age < 840:
            row[f"model/{SPEC.name}"] = [
                400.0 + age % 60,
                2.1,
                4.5,
                9.25,
                0.0,
                0.0,
                0.5,
            ]
            row["events/orders"] = [30.0]
        rows[now - age] = row
    file = home / "console" / "minutes.json"
    file.parent.mkdir()
    file.write_text(json.dumps(rows))
