"""`gyre demo`: the loop closes by itself on the real history, in an installation of its own.

The first version is as of 180 days ago; the customers it meets are today's. Nothing is staged:
where no drift is found, or the challenger is refused, the demo says so and its exit code is 1.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cli.terminal import OUT, progress, tell
from cli.up import ask_model
from core.errors import MonitoringError
from core.settings import Settings, load_settings
from core.spec import load_spec
from core.temporary import temporary_installation
from feature_repo.service import PublishedService
from feature_repo.views import entities
from mlflow_server.alerts import Alerts
from mlflow_server.ledger import Ledger
from monitoring.decision_log import DecisionRow, newest_decisions
from stack.airflow_api import AirflowApi
from stack.environment import process_environment
from stack.processes import end_stack

EXAMPLE = "customer_churn_model"
MONITOR = f"monitor_{EXAMPLE}"
TRAIN = f"train_{EXAMPLE}"
AGE = timedelta(days=180)
UP_SECONDS = 400
MONITOR_SECONDS = 120
EVENT_SECONDS = 60
"""Time for a training to start, and for its version to be served."""
BATCH_ROWS = 1_000
TRIES = 5
MONITORING_RUNS = 3
"""The rule for a retraining asks for 2 bad windows of 5."""


def demo(home: Path | None, *, keep: bool) -> bool:
    """Run the demo in a home or a temporary folder; say whether it ended as it should.

    Its stack has free ports and is ended again unless `keep`.
    """
    # Not with the gyre.env of the installation that is here.
    base = load_settings(home=home) if home else Settings()
    first = (datetime.now(UTC) - AGE).isoformat()
    command = [str(Path(sys.executable).parent / "gyre"), "up", "--as-of", first]
    with temporary_installation(base, "demo", home, keep=keep) as settings:
        environment = process_environment(settings)
        try:
            subprocess.run(command, env=environment, check=True, timeout=UP_SECONDS)
            with AirflowApi(settings) as airflow, progress("demo", OUT):
                is_closed = DemoRun(settings, airflow).run()
        finally:
            if not keep:
                end_stack(settings)
        if keep:
            tell(
                f"It stays up, see {settings.console_address}/; to end it: "
                f"GYRE_HOME={settings.home} gyre down"
            )
    return is_closed


class DemoRun:
    """Once round the loop of a running stack. Each line has the seconds since it began."""

    def __init__(self, settings: Settings, airflow: AirflowApi) -> None:
        self._settings = settings
        self._airflow = airflow
        spec = load_spec(EXAMPLE)
        views = PublishedService(settings, spec.feature_service).join_keys
        rows = entities(settings, views, spec.entity_key, datetime.now(UTC))
        self._entities = rows.to_pylist()
        self._began = time.monotonic()

    def run(self) -> bool:
        """Say whether a new version answers and the monitor has nothing against it."""
        old_version = self._predict_all()["model_version"]
        decision = self._monitor_until_retraining()
        with Alerts(self._settings) as alerts:
            for alert in alerts.rows(EXAMPLE):
                self._say(f"alert: {alert['message']} ({alert['cause']})")
        training = self._follow_training(decision.cause)
        first = self._entities[:1]
        _wait_for(
            "a new version",
            lambda: self._predict(first)[0]["model_version"] != old_version,
        )
        served = datetime.now(UTC)
        answer = self._predict_all()
        last_decision = self._monitor()
        verdict = self._time_of(decision)
        started = datetime.fromisoformat(training["start_date"])
        self._say(f"an answer now: {json.dumps(answer)}")
        for event, moment in (
            ("training started", started),
            ("new version serving", served),
        ):
            self._say(f"verdict to {event}: {(moment - verdict).total_seconds():.1f} s")
        new_version = answer["model_version"]
        self._say(
            f"version {old_version} at first, version {new_version} now: "
            f"{last_decision.verdict}"
        )
        is_well = last_decision.verdict == "ok" and last_decision.action == "nothing"
        return new_version != old_version and is_well

    def _say(self, text: str) -> None:
        tell(f"[{time.monotonic() - self._began:6.1f} s] {text}")

    def _predict_all(self) -> dict[str, Any]:
        """Ask for every entity there is; return the answer for one of the population."""
        answers: list[dict[str, Any]] = []
        for start in range(0, len(self._entities), BATCH_ROWS):
            answers += self._predict(self._entities[start : start + BATCH_ROWS])
        version = answers[-1]["model_version"]
        self._say(f"{len(answers)} predictions, by version {version}")
        members = [answer for answer in answers if answer["in_population"]]
        return members[-1] if members else answers[-1]

    def _predict(self, keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ask, again where features came too late: monitoring leaves out answers from defaults."""
        for _ in range(TRIES):
            response = ask_model(self._settings, EXAMPLE, keys, "/batch", timeout=60)
            answers: list[dict[str, Any]] = response.raise_for_status().json()
            if all(answer["features_from"] == "online" for answer in answers):
                break
            time.sleep(1)
        return answers

    def _signalled_training(self) -> dict[str, Any] | None:
        """Return the newest training that a drift started, None before it runs."""
        runs = self._airflow.last_runs(TRAIN, run_type="asset_triggered")
        return next((run for run in runs if run["start_date"]), None)

    def _monitor_until_retraining(self) -> DecisionRow:
        """Monitor until a run, perhaps the hourly one between, has decided to retrain."""
        for _ in range(MONITORING_RUNS):
            last = self._monitor()
            decisions = newest_decisions(self._settings, EXAMPLE, action="retrain")
            if decisions:
                return decisions[-1]
        raise MonitoringError(
            f"no retraining was decided; the last: {last.rule}: {last.reason}"
        )

    def _monitor(self) -> DecisionRow:
        """Run the monitor in Airflow and return what it decided."""
        run_id = self._airflow.trigger(MONITOR, {})
        run = self._airflow.follow(MONITOR, run_id, tell, MONITOR_SECONDS)
        as_of = datetime.fromisoformat(run["start_date"])
        decisions = newest_decisions(self._settings, EXAMPLE)
        decision = next(row for row in decisions if row.as_of == as_of)
        self._say(f"{MONITOR}: {run['note']}")
        return decision

    def _time_of(self, decision: DecisionRow) -> datetime:
        """Return when the task ended that took a decision."""
        for run in self._airflow.last_runs(MONITOR, 10):
            if datetime.fromisoformat(run["start_date"]) == decision.as_of:
                for task in self._airflow.tasks(MONITOR, run["dag_run_id"]):
                    if task["task_id"] == "monitor":
                        return datetime.fromisoformat(task["end_date"])
        return decision.as_of

    def _follow_training(self, cause: str) -> dict[str, Any]:
        """Follow the training of a cause to its end, say what came of it, and return its run."""
        training: dict[str, Any]
        training = _wait_for("a training", self._signalled_training)
        run_id = training["dag_run_id"]
        self._say(f"training {run_id}, its cause: {cause}")
        outcome = self._airflow.follow(TRAIN, run_id, tell)["note"]
        self._say(f"training ended: {outcome}")
        with Ledger(self._settings) as ledger:
            row = ledger.rows(EXAMPLE)[-1]
        self._say(
            f"ledger {row.sequence}: {row.from_version} → {row.to_version} "
            f"by {row.who}: {row.why}"
        )
        return training


def _wait_for(event: str, ask: Callable[[], Any]) -> Any:
    """Ask until the answer is a true value; raise MonitoringError where none comes in time."""
    deadline = time.monotonic() + EVENT_SECONDS
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise MonitoringError(f"{event}: not within {EVENT_SECONDS} s")
        time.sleep(0.2)
