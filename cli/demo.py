"""`gyre demo`: the loop closes by itself on the real history, in an installation of its own.

The first version is as of 180 days ago; the customers of its requests are today's. Nothing is staged:
where no drift is found, or the challenger is refused, the demo says so and its exit code is 1.
With a canary, the new version takes over in steps, each judged on requests that the demo sends.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import httpx

from cli.models import ledger_table
from cli.terminal import OUT, progress, show, tell
from cli.up import newest_entities
from core.additions import is_present
from core.errors import MonitoringError, SettingsError
from core.project import CLONE, SHIPPED, STORE
from core.settings import Settings, load_settings
from core.spec import load_spec
from core.temporary import temporary_installation
from core.tokens import serving_headers
from mlflow_server.alerts import Alerts
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from monitoring.decisions.store import DecisionRow, newest_decisions
from monitoring.serving_status import read_status
from stack.airflow_api import AirflowApi
from stack.environment import process_environment
from stack.serving_client import ask_serving
from stack.supervisor import end_stack

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitoring.trials.rollout import Candidate

TRIALS = "monitoring.trials"
"""The addition that judges a canary."""
EXAMPLE = "customer_churn_model"
MONITOR_DAG = f"monitor_{EXAMPLE}"
TRAIN_DAG = f"train_{EXAMPLE}"
ROLLOUT_DAG = f"rollout_{EXAMPLE}"
SPEC = f"models/{EXAMPLE}.toml"
EXAMPLE_FILES = {
    SHIPPED: (SPEC, "data/cdnow_orders.parquet"),
    CLONE: (
        STORE,
        "feature_repo/datasets/orders.py",
        "feature_repo/expectations/orders.json",
    ),
}
"""Files of the example, by the folder that has them."""
ROLLOUT_LINES = re.compile(r"^\[rollout\].*?(?=^\[|\Z)", re.DOTALL | re.MULTILINE)
"""Lines of a spec that has a canary already: the demo replaces them."""
CANARY = """
[rollout]
policy = "canary"
minutes = 0
latency = 10
"""
"""The steps and the other limits are the defaults. A step ends as soon as it has its requests, and
a busy machine, which makes one step slower than the one before, does not end the rollout."""
AGE = timedelta(days=180)
UP_SECONDS = 1800
RUN_SECONDS = 600
EVENT_SECONDS = 300
"""Limits of the start, of a run of a DAG, and of a wait for a training or a served version; a busy
machine takes three times as long as a quiet one."""
BATCH_ROWS = 1_000
TRIES = 5
MONITORING_RUNS = 3
"""The rule for a retraining asks for 2 bad windows of 5."""
STEP_REQUESTS = 3_000
"""Requests of a step, for as many of 6,000 members. A judgement needs 100 to each version; a
challenger of 5 % gets about 150."""
JUDGEMENTS = 15
"""A rollout has 5 steps. A busy server leaves out answers of the shadow, and the step then waits."""


def demo(home: Path | None, *, canary: bool, keep: bool) -> bool:
    """Run the demo in a home or a temporary folder; return whether it ended as it should.

    Its stack has free ports and is ended again unless `keep`.

    Raises:
        SettingsError: A canary needs a package that is not there.

    """
    if canary and not is_present(TRIALS):
        raise SettingsError(f"--canary: expected the package {TRIALS}, found none")
    # Without a home, the gyre.env of the installation that is here is not read.
    base = load_settings(home=home) if home else Settings()
    first = (datetime.now(UTC) - AGE).isoformat()
    command = [str(Path(sys.executable).parent / "gyre"), "up", "--as-of", first]
    with temporary_installation(base, "demo", home, keep=keep) as settings:
        if canary:
            project = settings.home / "project"
            write_example(project, canary=True)
            settings = settings.model_copy(update={"project": project})  # noqa: PLW2901
        environment = process_environment(settings)
        try:
            subprocess.run(command, env=environment, check=True, timeout=UP_SECONDS)
            with AirflowApi(settings) as airflow, progress("demo", OUT):
                is_closed = DemoRun(settings, airflow).run(canary=canary)
        finally:
            if not keep:
                end_stack(settings)
        if keep:
            tell(
                f"It stays up, see {settings.console_address}/; to end it: "
                f"GYRE_HOME={settings.home} gyre down"
            )
    return is_closed


def demo_of_example(*, keep: bool) -> int:
    """Run this command again in a project that holds the shipped example; return its exit code.

    The project stays at the end if its stack does (`keep`).
    """
    folder = Path(mkdtemp(prefix="gyre-example-"))
    write_example(folder)
    command = [str(Path(sys.executable).parent / "gyre"), *sys.argv[1:]]
    environment = os.environ | {"GYRE_PROJECT": str(folder)}
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def write_example(folder: Path, *, canary: bool = False) -> None:
    """Copy the files of the shipped example into a project, with a canary in its spec if asked."""
    for root, names in EXAMPLE_FILES.items():
        for name in names:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, file)
    if canary:
        spec = folder / SPEC
        spec.write_text(ROLLOUT_LINES.sub("", spec.read_text()) + CANARY)


class DemoRun:
    """One turn of the loop on a running stack. Each line starts with the seconds since its start."""

    def __init__(self, settings: Settings, airflow: AirflowApi) -> None:
        self._settings = settings
        self._airflow = airflow
        self._entities = newest_entities(settings, load_spec(EXAMPLE))
        self._began = time.monotonic()

    def run(self, *, canary: bool) -> bool:
        """Run the demo; return whether a new version answers and its verdict is ok."""
        members = self._predict_all()
        old_version = members[-1]["model_version"]
        decision = self._monitor_until_retraining()
        with Alerts(self._settings) as alerts:
            for alert in alerts.rows(EXAMPLE):
                self._say(f"alert: {alert['message']} ({alert['cause']})")
        training = self._follow_training(decision.cause)
        if canary:
            self._follow_rollout(members)
        first = self._entities[:1]
        _wait_for(
            "a new version",
            lambda: self._predict(first)[0]["model_version"] != old_version,
        )
        served = datetime.now(UTC)
        answer = self._predict_all()[-1]
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

    def _predict_all(self) -> list[dict[str, Any]]:
        """Ask for every entity; return the answers for members of the population."""
        answers: list[dict[str, Any]] = []
        for start in range(0, len(self._entities), BATCH_ROWS):
            answers += self._predict(self._entities[start : start + BATCH_ROWS])
        version = answers[-1]["model_version"]
        self._say(f"{len(answers)} predictions, by version {version}")
        members = [answer for answer in answers if answer["in_population"]]
        return members or answers

    def _predict(self, keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ask; ask again where features came late, as monitoring leaves out answers from defaults."""
        for _ in range(TRIES):
            path = f"/models/{EXAMPLE}/predict/batch"
            response = ask_serving(self._settings, path, keys)
            answers: list[dict[str, Any]] = response.raise_for_status().json()
            if all(answer["features_from"] == "online" for answer in answers):
                break
            time.sleep(1)
        return answers

    def _signalled_training(self) -> dict[str, Any] | None:
        """Return the newest training that a drift has started; None before it runs."""
        runs = self._airflow.last_runs(TRAIN_DAG, run_type="asset_triggered")
        return next((run for run in runs if run["start_date"]), None)

    def _monitor_until_retraining(self) -> DecisionRow:
        """Monitor until a run, perhaps an hourly one in between, has decided to retrain."""
        for _ in range(MONITORING_RUNS):
            last = self._monitor()
            decisions = newest_decisions(self._settings, EXAMPLE, action="retrain")
            if decisions:
                return decisions[-1]
        raise MonitoringError(
            f"no retraining was decided; the last: {last.rule}: {last.reason}"
        )

    def _monitor(self) -> DecisionRow:
        """Run the monitor in Airflow and return its decision."""
        run = self._run_dag(MONITOR_DAG)
        as_of = datetime.fromisoformat(run["start_date"])
        decisions = newest_decisions(self._settings, EXAMPLE)
        return next(row for row in decisions if row.as_of == as_of)

    def _run_dag(self, dag: str) -> dict[str, Any]:
        """Run a DAG in Airflow to its end, print its note, and return the run."""
        run_id = self._airflow.trigger(dag, {})
        run = self._airflow.follow(dag, run_id, tell, RUN_SECONDS)
        self._say(f"{dag}: {run['note'] or 'nothing was left to do'}")
        return run

    def _time_of(self, decision: DecisionRow) -> datetime:
        """Return the end of the task that took a decision."""
        for run in self._airflow.last_runs(MONITOR_DAG, 10):
            if datetime.fromisoformat(run["start_date"]) == decision.as_of:
                for task in self._airflow.tasks(MONITOR_DAG, run["dag_run_id"]):
                    if task["task_id"] == "monitor":
                        return datetime.fromisoformat(task["end_date"])
        return decision.as_of

    def _follow_training(self, cause: str) -> dict[str, Any]:
        """Follow the training of a cause to its end, print its outcome, and return its run."""
        training: dict[str, Any] = _wait_for("a training", self._signalled_training)
        run_id = training["dag_run_id"]
        self._say(f"training {run_id}, its cause: {cause}")
        outcome = self._airflow.follow(TRAIN_DAG, run_id, tell)["note"]
        self._say(f"training ended: {outcome}")
        row = self._ledger_rows()[-1]
        self._say(
            f"ledger {row.sequence}: {row.role} {row.from_version} → {row.to_version} "
            f"by {row.who}: {row.why}"
        )
        return training

    def _ledger_rows(self) -> list[LedgerRow]:
        with Ledger(self._settings) as ledger:
            return ledger.rows(EXAMPLE)

    def _follow_rollout(self, members: list[dict[str, Any]]) -> None:
        """Ask for members and have each step judged, until no rollout is in progress."""
        from monitoring.trials.rollout import find_candidate  # noqa: PLC0415

        for _ in range(JUDGEMENTS):
            candidate = find_candidate(self._ledger_rows())
            if candidate is None:
                show(ledger_table(*self._ledger_rows()))
                return
            place = f"version {candidate.version} {candidate.place}"
            _wait_for(place, partial(self._is_served, candidate))
            counts = self._count_answers(members)
            shares = [f"{counts[name]} by version {name}" for name in sorted(counts)]
            self._say(f"{place}: {counts.total()} answers, {', '.join(shares)}")
            # The clock starts the DAG too, and may have been quicker.
            if find_candidate(self._ledger_rows()) == candidate:
                self._run_dag(ROLLOUT_DAG)
        raise MonitoringError(f"{place}: still after {JUDGEMENTS} judgements")

    def _is_served(self, candidate: Candidate) -> bool:
        """Whether serving follows the ledger's step."""
        status = read_status(self._settings, self._settings.serving_address)
        model = status["models"][EXAMPLE]
        version = model["versions"].get(candidate.row.role)
        return bool(
            version == candidate.version and model["percent"] == candidate.percent
        )

    def _count_answers(self, members: list[dict[str, Any]]) -> Counter[str]:
        """Send requests for members in random order; return the number of answers by version."""
        counts = Counter[str]()
        key = self._entities[0]
        with httpx.Client(
            base_url=self._settings.serving_address,
            headers=serving_headers(self._settings),
            timeout=60,
            trust_env=False,
        ) as client:
            # The first members have the newest orders, and are not like all others.
            for member in random.sample(members, STEP_REQUESTS):
                body = {name: member[name] for name in key}
                answer = client.post(f"/models/{EXAMPLE}/predict", json=body)
                counts[answer.raise_for_status().json()["model_version"]] += 1
        return counts


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
