"""A real console beside the real server of the serving tests."""

from __future__ import annotations

import signal
import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from mlflow_server.alerts import Alerts
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.check import CheckResult
from monitoring.decision_log import store_checks, store_decision
from stack.environment import process_environment
from tests.conftest import answers, running, wait_until
from tests.console.year import decision_row
from tests.serving.conftest import rig, served  # noqa: F401  (fixtures)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

# What was imported is written to a file when the process is asked by SIGUSR1.
PROGRAM = """
import runpy, signal, sys
from pathlib import Path

out = Path(sys.argv.pop())
signal.signal(signal.SIGUSR1, lambda *_: out.write_text(" ".join(sys.modules)))
runpy.run_module("monitoring.console", run_name="__main__", alter_sys=True)
"""


@dataclass
class Console:
    client: httpx.Client
    process: subprocess.Popen[bytes]
    written: Path

    def modules(self) -> set[str]:
        self.written.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        wait_until(
            "its modules",
            lambda: self.written.exists() and bool(self.written.read_text()),
        )
        return set(self.written.read_text().split())

    def page(self, model: str = "") -> str:
        answer = self.client.get(f"/status/{model}" if model else "/")
        assert answer.status_code == 200, answer.text
        return answer.text

    def page_with(self, text: str, model: str = "") -> str:
        """The page once `text` is on it: of what is slow to answer it says that it is unknown."""
        wait_until(text, lambda: text in self.page(model))
        return self.page(model)


RESULTS = [
    CheckResult(
        name="psi/total_orders_30d",
        kind="data_drift",
        status="bad",
        value=0.31,
        limit=0.25,
        words="total_orders_30d drifts: PSI 0.31",
        remedy="A retraining starts by itself.",
    ),
    CheckResult(
        name="psi/customer_tenure_days",
        kind="data_drift",
        status="note",
        value=7.7,
        limit=0.25,
        acts=False,
        reason="grows by a day each day",
    ),
    CheckResult(name="serving/requests_per_minute", kind="serving", value=60.0),
    CheckResult(name="mean/score", kind="prediction_drift", value=0.4, limit=0.5),
    CheckResult(
        name="online/log_loss", kind="performance_drift", value=0.61, limit=0.7
    ),
    CheckResult(name="missing/lifetime_value", kind="missing", value=0.0, limit=0.05),
    CheckResult(name="volume/entities", kind="volume", value=512.0),
    CheckResult(name="serving/p99_ms", kind="serving", value=9.5),
]
SCRIPT = """<script>
document.title = "acted";
try { parent.document.title = "acted" } catch {}
try { if (top !== self) top.location = "/metrics" } catch {}
fetch("/metrics").catch(() => {});
</script>"""
"""Of a category of a data set: it tries to act on whoever shows it."""


@pytest.fixture(scope="session")
def looked(rig: Any, served: Any) -> datetime:
    """Rows as the monitor keeps them: a retraining, an alert nobody heard; a training, a report."""
    now = datetime.now(UTC)
    name = rig.spec.name
    for hours, verdict, action in ((8, "ok", "nothing"), (7, "bad", "retrain"),
                                   (4, "bad", "nothing")):  # fmt: skip
        at = now - timedelta(hours=hours)
        row = decision_row(
            model=name,
            version=served.first,
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
    tracking.set_terminated(training)
    key = f"{name} version {served.first}"
    run_id = tracking.start_or_find_run(
        f"{rig.spec.experiment}_monitoring", key, key, {"version": served.first}
    )
    for hours in (7, 4):
        moment = now - timedelta(hours=hours)
        report = f"reports/{moment:%Y-%m-%dT%H%M%S}/report.html"
        tracking.log_text(run_id, f"Evidently's {SCRIPT}", report)
    for number in (served.first, served.second):
        version = Registry(rig.settings).version(name, number)
        tracking.log_text(
            version.run_id, f"of version {number} {SCRIPT}", "model_card.html"
        )
        tracking.log(version.run_id, metrics={"test/auc": 0.71, "baseline/auc": 0.5})
    return now


@pytest.fixture(scope="session")
def console(rig: Any, served: Any) -> Iterator[Console]:
    settings, written = rig.settings, rig.folder / "modules"
    command = [sys.executable, "-c", PROGRAM, str(written)]
    with (
        running(
            command, rig.folder / "console.log", **process_environment(settings)
        ) as process,
        httpx.Client(base_url=settings.console_address, timeout=300) as client,
    ):
        wait_until(
            "console", lambda: answers(f"{settings.console_address}/health/live")
        )
        yield Console(client, process, written)
