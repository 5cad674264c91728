"""`gyre demo`: the loop closes by itself on the real history, in an installation of its own.

The first version is as of 180 days ago; the customers it meets are today's. Nothing is staged:
where no drift is found, or the challenger is refused, the demo says so and its exit code is 1.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from cli.terminal import OUT, tell, working
from core.errors import MonitoringError
from core.settings import Settings, load_settings
from core.spec import load_spec
from core.temporary import temporary_installation
from core.tokens import serving_headers
from feature_repo.service import PublishedService
from feature_repo.views import entities
from mlflow_server.ledger import Ledger
from mlflow_server.records import DecisionRow, Records
from mlflow_server.tracking import Tracking
from stack.airflow_api import AirflowApi
from stack.environment import process_environment
from stack.processes import end_stack
from training.artifacts import GATES, read

EXAMPLE = "customer_churn_model"
AGE = timedelta(days=180)
UP_SECONDS = 400
CHUNK, TRIES = 1_000, 5
MONITORING_RUNS = 3
"""The rule for a retraining asks for 2 bad windows of 5."""


def demo(home: Path | None, *, keep: bool) -> bool:
    """Run the demo in `home` or a temporary folder; say whether it ended as it should.

    Its stack has free ports and is ended again unless `keep`.
    """
    # Not with the gyre.env of the installation that is here.
    base = load_settings(home=home) if home else Settings()
    first = (datetime.now(UTC) - AGE).isoformat()
    up = [str(Path(sys.executable).parent / "gyre"), "up", "--as-of", first]
    with temporary_installation(base, "demo", home, keep=keep) as settings:
        try:
            subprocess.run(
                up, env=process_environment(settings), check=True, timeout=UP_SECONDS
            )
            with (
                AirflowApi(settings) as airflow,
                closing(Records(settings)) as records,
                working(base, "demo", OUT),
            ):
                closed = DemoRun(settings, airflow, records).run()
        finally:
            if not keep:
                end_stack(settings)
        if keep:
            then = f"to end it: GYRE_HOME={settings.home} gyre down"
            tell(f"It stays up, see {settings.console_address}/ ; {then}")
    return closed


class DemoRun:
    """Once round the loop of a running stack. Each line has the seconds since it began."""

    def __init__(
        self, settings: Settings, airflow: AirflowApi, records: Records
    ) -> None:
        self.settings = settings
        self.airflow = airflow
        self.records = records
        self.spec = load_spec(settings.default_model or EXAMPLE)
        self.monitor_dag = f"monitor_{self.spec.name}"
        self.train_dag = f"train_{self.spec.name}"
        views = PublishedService(settings, self.spec.feature_service).join_keys
        self.entities = entities(
            settings, views, [*self.spec.entity_key], datetime.now(UTC)
        ).to_pylist()
        self.began = time.monotonic()

    def run(self) -> bool:
        """Say whether a new version answers and the monitor has nothing against it."""
        old = self.predict_all()["model_version"]
        cause = self.monitor_until_retraining().cause
        for alert in self.records.alerts(self.spec.name):
            self.say(f"alert: {alert['message']} ({alert['cause']})")
        started = self.follow_training(cause)
        self.wait("a new version", lambda: self.served_version() != old, 30)
        served = datetime.now(UTC)
        answer = self.predict_all()
        new = answer["model_version"]
        decision = self.monitor()
        verdict = self.verdict_before(started)
        self.say(f"an answer now: {json.dumps(answer)}")
        self.say(
            f"verdict to training started: {(started - verdict).total_seconds():.1f} s"
        )
        self.say(
            f"verdict to new version serving: {(served - verdict).total_seconds():.1f} s"
        )
        self.say(f"version {old} at first, version {new} now: {decision.verdict}")
        return new != old and (decision.verdict, decision.action) == ("ok", "nothing")

    def say(self, text: str) -> None:
        tell(f"[{time.monotonic() - self.began:6.1f} s] {text}")

    def predict_all(self) -> dict[str, Any]:
        """Ask for every entity there is; return the answer for one of the population."""
        answers: list[dict[str, Any]] = []
        for start in range(0, len(self.entities), CHUNK):
            answers += self.predict(self.entities[start : start + CHUNK])
        self.say(
            f"{len(answers)} predictions, by version {answers[-1]['model_version']}"
        )
        return next(
            (row for row in reversed(answers) if row["in_population"]), answers[-1]
        )

    def predict(self, keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ask, again where features came too late: monitoring leaves out answers from defaults."""
        url = f"{self.settings.serving_address}/models/{self.spec.name}/predict/batch"
        headers = serving_headers(self.settings)
        for _ in range(TRIES):
            response = httpx.post(url, json=keys, headers=headers, timeout=60)
            answers = list[dict[str, Any]](response.raise_for_status().json())
            if all(answer["features_from"] == "online" for answer in answers):
                break
            time.sleep(1)
        return answers

    def served_version(self) -> str:
        return str(self.predict(self.entities[:1])[0]["model_version"])

    def monitor_until_retraining(self) -> DecisionRow:
        """Monitor until a run, perhaps the hourly one between, has decided to retrain."""
        for _ in range(MONITORING_RUNS):
            last = self.monitor()
            if decisions := self.records.decisions(self.spec.name, action="retrain"):
                return decisions[-1]
        raise MonitoringError(
            f"no retraining was decided; the last: {last.rule}: {last.reason}"
        )

    def monitor(self) -> DecisionRow:
        """Run the monitor in Airflow and return what it decided."""
        run_id = self.airflow.trigger(self.monitor_dag, {})
        run = self.airflow.follow(self.monitor_dag, run_id, tell, 120)
        as_of = datetime.fromisoformat(run["run_after"])
        decisions = self.records.decisions(self.spec.name)
        decision = next(row for row in decisions if row.as_of == as_of)
        self.say(f"{self.monitor_dag}: {run['note']}")
        self.say(
            ", ".join(f"{name} {value:.4g}" for name, value in decision.figures.items())
        )
        return decision

    def follow_training(self, cause: str) -> datetime:
        """Follow the training of `cause` to its end and say what came of it; return its start."""
        run = self.wait("training", lambda: self.training_of(cause), 60)
        self.say(f"training {run['dag_run_id']}, its cause: {cause}")
        outcome = self.airflow.follow(self.train_dag, run["dag_run_id"], tell)["note"]
        tracking = Tracking(self.settings)
        trained = tracking.runs(self.spec.experiment)
        run_id = next(each.run_id for each in trained if each.tags["cause"] == cause)
        for gate in json.loads(read(tracking, run_id, GATES))["gates"]:
            self.say(
                f"gate {'passed' if gate['passed'] else 'REFUSED'}: {gate['text']}"
            )
        self.say(f"training ended: {outcome}")
        with closing(Ledger(self.settings)) as ledger:
            last = ledger.rows(self.spec.name)[-1]
        change = f"{last.from_version} → {last.to_version}"
        self.say(f"ledger {last.sequence}: {change} by {last.who}: {last.why}")
        return datetime.fromisoformat(run["start_date"])

    def training_of(self, cause: str) -> dict[str, Any] | None:
        runs = self.airflow.last_runs(self.train_dag, 10)
        return next(
            (r for r in runs if r["partition_key"] == cause and r["start_date"]), None
        )

    def verdict_before(self, moment: datetime) -> datetime:
        """When the last task of the monitor before `moment` ended."""
        dag = self.monitor_dag
        runs = [run["dag_run_id"] for run in self.airflow.last_runs(dag, 10)]
        tasks = [task for run in runs for task in self.airflow.tasks(dag, run)]
        ended = [
            task for task in tasks if task["task_id"] == "monitor" and task["end_date"]
        ]
        ends = [datetime.fromisoformat(task["end_date"]) for task in ended]
        return max(end for end in ends if end < moment)

    def wait(self, what: str, ask: Callable[[], Any], limit: float) -> Any:
        """Ask until the answer is a true value; raise MonitoringError after `limit` s."""
        until = time.monotonic() + limit
        while not (answer := ask()):
            if time.monotonic() > until:
                raise MonitoringError(f"{what}: not within {limit:.0f} s")
            time.sleep(0.2)
        return answer
