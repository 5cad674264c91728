"""A real console beside the real server of the serving tests."""

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_server.alerts import Alerts
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from monitoring.decisions.store import store_checks, store_decision
from tests.conftest import wait_until
from tests.serving.conftest import rig, served  # noqa: F401  (fixtures)
from tests.support.monitoring.page_text import one_line
from tests.support.monitoring.year import decision_row, figure
from tests.support.serving.console import PAGES
from tests.support.serving.console import console as start_console
from tests.support.tools.preloaded import commands_folder


class Console:
    def __init__(self, client):
        self.client = client

    def page(self, model="", tab=""):
        path = f"/status/{model}" if model else "/"
        answer = self.client.get(path, params={"tab": tab} if tab else {})
        assert answer.status_code == 200, answer.text
        return one_line(answer.text)

    def page_with(self, text, model="", tab=""):
        """The page once `text` is on it: of what is slow to answer it says that it is unknown."""
        wait_until(text, lambda: text in self.page(model, tab))
        return self.page(model, tab)


RESULTS = [
    figure(
        "psi/total_orders_30d", "data_drift", 0.31, 0.25, status="bad",
        words="total_orders_30d drifts: PSI 0.31", remedy="A retraining starts by itself.",
    ),
    figure(
        "psi/customer_tenure_days", "data_drift", 7.7, 0.25, status="note", acts=False,
        reason="grows by a day each day",
    ),
    figure("serving/requests_per_minute", "serving", 60.0),
    figure("mean/score", "prediction_drift", 0.4, 0.5),
    figure("online/log_loss", "performance_drift", 0.61, 0.7),
    figure("missing/lifetime_value", "missing", 0.0, 0.05),
    figure("volume/entities", "volume", 512.0),
    figure("serving/p99_ms", "serving", 9.5),
]  # fmt: skip
HEAD = "<head><title>A document</title></head>"
SCRIPT = """<script>
document.title = "acted";
try { parent.document.title = "acted" } catch {}
try { if (top !== self) top.location = "/metrics" } catch {}
fetch("/metrics").catch(() => {});
</script>"""
"""Of a category of a data set: it tries to act on whoever shows it."""


@pytest.fixture(scope="session")
def monitored(rig, served):
    """Rows as the monitor keeps them: a retraining, an alert nobody heard; a training, a report."""
    now = datetime.now(UTC)
    name = rig.spec.name
    decided = {8: ("ok", "nothing"), 7: ("bad", "retrain"), 4: ("bad", "nothing")}
    created = Registry(rig.settings).assignment(name).created
    for hours, (verdict, action) in decided.items():
        at = now - timedelta(hours=hours)
        row = decision_row(
            model=name,
            version=served.first,
            created=created,
            as_of=at,
            verdict=verdict,
            action=action,
            rule="drift",
            words="total_orders_30d drifts, all else holds",
        )
        store_decision(rig.settings, row)
        store_checks(rig.settings, name, at, RESULTS)
    with closing(Alerts(rig.settings)) as alerts:
        alerts.note(name, "cause", "bad: said to <nobody>", now)
    tracking = Tracking(rig.settings)
    tags = {"as_of": now.isoformat(), "reason": "drift"}
    training = tracking.start_or_find_run(rig.spec.experiment, "k", "k", tags)
    tracking.end(training)
    key = f"{name} version {served.first}"
    experiment = f"{rig.spec.experiment}_monitoring"
    run_id = tracking.start_or_find_run(experiment, key, key, {"version": served.first})
    for hours in (7, 4):
        report = f"{now - timedelta(hours=hours):%Y-%m-%dT%H%M%S}/report.html"
        tracking.log_text(run_id, f"{HEAD} Evidently's {SCRIPT}", f"reports/{report}")
    for number in (served.first, served.second):
        registry = Registry(rig.settings)
        version = registry.version(name, number)
        is_first = number == served.first
        registry.note_reproduction(version, now.date(), is_same=is_first)
        tracking.log_text(
            version.run_id, f"{HEAD} of version {number} {SCRIPT}", "model_card.html"
        )
        metrics = {"test/auc": 0.71, "baseline/auc": 0.5, "test/log_loss": 0.598}
        tracking.log(version.run_id, metrics=metrics)
    return now


@pytest.fixture(scope="session")
def console(rig, served):
    """It asks MLflow again after a second, where others do so after 30."""
    port = rig.settings.console_port
    constants = {PAGES: 1.0}
    with start_console(rig, constants=constants, console_port=port) as (client, _):
        yield Console(client)


@pytest.fixture(scope="session")
def fast_rig(rig):
    """The rig, but that it starts programs by the preloaded python."""
    return replace(rig, programs=commands_folder())


@pytest.fixture(scope="module")
def consumer(fast_rig, served):
    """A consumer of the server's events; other files have none, or one that they kill."""
    with fast_rig.consuming() as process:
        yield process
