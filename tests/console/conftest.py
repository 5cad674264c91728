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

from mlflow_server.records import DecisionRow, Records
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from mlflow_server.window_details import WindowDetails
from stack.environment import process_environment
from tests.conftest import answers, running, wait_until
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


FEATURES = {
    "total_orders_30d": 0.31,
    "lifetime_orders": 0.02,
    "customer_tenure_days": 7.7,
}

DETAILS = WindowDetails(
    quantiles={"score": (0.1, 0.2, 0.3, 0.4, 0.5), "lifetime_orders": (1.0, 2.0, 3.0, 4.0, 5.0)},
    reference_quantiles={"score": (0.0, 0.1, 0.2, 0.3, 0.4),
                         "lifetime_orders": (0.0, 1.0, 2.0, 3.0, 4.0)},
)  # fmt: skip


@pytest.fixture(scope="session")
def looked(rig: Any, served: Any) -> datetime:
    """Rows as the monitor keeps them: a retraining, an alert nobody heard; a training, a report."""
    now = datetime.now(UTC)
    figures = {f"psi_{name}": value for name, value in FEATURES.items()}
    figures |= {"entities": 512.0, "backfilled_auc": 0.69, "online_log_loss": 0.61}
    of = (rig.spec.name, served.first)
    with closing(Records(rig.settings)) as records:
        for hours, verdict, action in ((8, "ok", "nothing"), (7, "bad", "retrain"),
                                       (4, "bad", "nothing")):  # fmt: skip
            at, why = now - timedelta(hours=hours), "total_orders_30d: PSI 0.31"
            row = DecisionRow(
                *of, at, verdict, action, "drift", why, "cause", "{}", figures
            )
            records.keep(row)
        records.keep_details(rig.spec.name, at, DETAILS)
        records.count_alert(rig.spec.name, "cause", "bad: said to <nobody>", now)
    tracking, tags = (
        Tracking(rig.settings),
        {"as_of": now.isoformat(), "reason": "drift"},
    )
    tracking.finish(
        tracking.start_or_find_run(rig.spec.experiment, "k", "k", tags), "FINISHED"
    )
    key = f"{rig.spec.name} version {served.first}"
    run_id = tracking.start_or_find_run(
        f"{rig.spec.experiment}_monitoring", key, key, {}
    )
    report = f"reports/{now - timedelta(hours=4):%Y-%m-%dT%H%M%S}/report.html"
    tracking.log_text(run_id, "Evidently's", report)
    version = Registry(rig.settings).version(rig.spec.name, served.first)
    tracking.log_text(version.run_id, "of the version", "model_card.html")
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
