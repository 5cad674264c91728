"""`gyre demo`: the loop closes by itself, on a stack of its own and the real history.

The first version is as of 180 days ago; the customers it meets are today's. Nothing is staged: if
no drift is found, or the challenger is refused, that is what is told, and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import nan
from typing import TYPE_CHECKING, Any

import httpx
import typer

from cli.own_stack import EXAMPLE, bring_up, folder, on_free_ports, stays_up
from feature_repo.datasets import load_dataset
from feature_repo.features import entities
from feature_repo.source import date_demo
from mlflow_server.ledger import Ledger
from mlflow_server.records import Records
from mlflow_server.tracking import Tracking
from stack.airflow_api import AirflowApi
from stack.ending import end_stack
from stack.errors import GyreError, MonitoringError
from stack.preflight import port_problems
from stack.settings import load_settings
from stack.spec import load_spec
from stack.tokens import serving_headers
from training.artifacts import GATES, read

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date

    from mlflow_server.records import DecisionRow
    from stack.settings import Settings

AGE = timedelta(days=180)
CHUNK, TRIES = 1_000, 5
LOOKS = 3
"""The rule asks for 2 bad windows of 5."""
COMPARED = ("log_loss_minus_champion", "log_loss_minus_champion_upper")


def demo(home: str | None, *, keep: bool) -> bool:
    """Tell the story; say whether it ended as it should.

    Where nothing is installed yet its stack becomes the installation and stays up. Otherwise it is
    in `home` or a temporary folder, on free ports, and is taken down unless `keep`.
    """
    settings = load_settings()
    if home is None and not settings.data.exists():
        if taken := port_problems(os.environ, settings.home):
            typer.echo("\n".join((*taken, "so the demo takes free ones")))
            settings = on_free_ports(settings.home)
        return _story(settings, keep=True).good
    with folder(home, "demo", keep=keep) as place:
        return _story(on_free_ports(place), keep=keep).good


def demo_week() -> bool:
    """Tell the story as it will be on each of seven days from today; end with a table."""
    today = datetime.now(UTC).date()
    told: dict[date, Ending | None] = {}
    for start in (today + timedelta(days=n) for n in range(7)):
        typer.echo(f"\n=== started on {start} ===")
        with folder(None, "demo", keep=False) as place:
            settings = on_free_ports(place)
            date_demo(settings, load_dataset("orders"), start, seen_on=today)
            try:
                told[start] = _story(settings, keep=False)
            except (GyreError, subprocess.SubprocessError) as exc:
                typer.echo(f"gyre: {exc}", err=True)
                told[start] = None
    typer.echo("\n| started on | drift | challenger's log loss minus champion's | in service after "
               "| then |\n|---|---|---|---|---|")  # fmt: skip
    for start, end in told.items():
        typer.echo(f"| {start} | {end.row() if end else 'failed | | |'} |")
    return all(end and end.good for end in told.values())


def _story(settings: Settings, *, keep: bool) -> Ending:
    with ExitStack() as after:
        if not keep:
            after.callback(end_stack, settings)
        first = (datetime.now(UTC) - AGE).isoformat()
        bring_up(settings, "--as-of", first)
        ended = Story(settings).tell()
    if keep:
        stays_up(settings)
    return ended


@dataclass(frozen=True)
class Ending:
    """How a story ended. seconds: from the verdict until the new version served."""

    good: bool
    drift: str
    difference: str
    seconds: float
    verdict: str

    def row(self) -> str:
        return f"{self.drift} | {self.difference} | {self.seconds:.0f} s | {self.verdict}"


class Story:
    """Each step says the seconds since the story began."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.spec = settings, load_spec(settings.default_model or EXAMPLE)
        self.name, self.began = self.spec.name, time.monotonic()

    def say(self, text: str) -> None:
        typer.echo(f"[{time.monotonic() - self.began:6.1f} s] {text}")

    def tell(self) -> Ending:
        with AirflowApi(self.settings) as airflow:
            old = self.predict_all()["model_version"]
            decided = self.look_until_retrain(airflow)
            cause = decided.cause
            with closing(Records(self.settings)) as records:
                for row in records.alerts(self.name):
                    self.say(f"alert: {row['message']} ({row['cause']})")
            run = self.wait("training", lambda: self.run_of(airflow, cause), 60)
            self.say(f"training {run['dag_run_id']}, its cause: {run['partition_key']}")
            outcome = airflow.follow(f"train_{self.name}", run["dag_run_id"], typer.echo)["note"]
            difference = self.tell_gates(cause)
            self.say(f"training ended: {outcome}")
            with closing(Ledger(self.settings)) as ledger:
                last = ledger.rows(self.name)[-1]
            change = f"{last.from_version} → {last.to_version}"
            self.say(f"ledger {last.sequence}: {change} by {last.who}: {last.why}")
            self.wait("a new version", lambda: self.version() != old, 30)
            served = datetime.now(UTC)
            answer = self.predict_all()
            then = self.look(airflow)
            started = datetime.fromisoformat(run["start_date"])
            verdict = self.verdict_before(airflow, started)
        self.say(f"an answer now: {json.dumps(answer)}")
        self.say(f"verdict to training started: {(started - verdict).total_seconds():.1f} s")
        seconds = (served - verdict).total_seconds()
        self.say(f"verdict to new version serving: {seconds:.1f} s")
        self.say(f"version {old} at first, version {answer['model_version']} now: {then.verdict}")
        good = answer["model_version"] != old and (then.verdict, then.action) == ("ok", "nothing")
        return Ending(good, decided.reason, difference, seconds, f"{then.verdict}: {then.reason}")

    def predict_all(self) -> dict[str, Any]:
        """Ask for every customer there is; return an answer that counts."""
        views, now = load_dataset(self.spec.dataset).views, datetime.now(UTC)
        self.known = entities(self.settings, views, self.spec.entity_key, now)
        chunks = [self.known[i : i + CHUNK] for i in range(0, len(self.known), CHUNK)]
        answers = [self.predict(chunk) for chunk in chunks]
        self.say(f"{len(self.known)} predictions, by version {answers[-1][0]['model_version']}")
        counted = (answer for answer in answers[-1] if answer["in_population"])
        return dict[str, Any](next(counted, answers[-1][-1]))

    def predict(self, keys: list[dict[str, Any]]) -> list[Any]:
        """Ask, again where features came too late: answers from defaults count for nothing."""
        url = f"{self.settings.serving_address}/models/{self.name}/predict/batch"
        headers = serving_headers(self.settings)
        for _ in range(TRIES):
            answer = httpx.post(url, json=keys, headers=headers, timeout=60)
            answers = list[Any](answer.raise_for_status().json())
            late = sum(each["features_from"] != "online" for each in answers)
            if not late:
                break
            self.say(f"{late} of {len(keys)} answers without the store's features: asked again")
            time.sleep(1)
        return answers

    def version(self) -> str:
        return str(self.predict(self.known[:1])[0]["model_version"])

    def look_until_retrain(self, airflow: AirflowApi) -> DecisionRow:
        """Look again until a look, perhaps the hourly one between, has decided to retrain."""
        for _ in range(LOOKS):
            last = self.look(airflow)
            with closing(Records(self.settings)) as records:
                found = [r for r in records.decisions(self.name) if r.action == "retrain"]
            if found:
                return found[-1]
        raise MonitoringError(f"no retraining was decided; the last: {last.rule}: {last.reason}")

    def look(self, airflow: AirflowApi) -> DecisionRow:
        """Run the monitor in Airflow and return what it decided."""
        dag, began = f"monitor_{self.name}", time.monotonic()
        run = airflow.follow(dag, airflow.trigger(dag, {}), typer.echo, 120)
        as_of = datetime.fromisoformat(run["run_after"])
        with closing(Records(self.settings)) as records:
            row = next(r for r in records.decisions(self.name) if r.as_of == as_of)
        self.say(f"{dag}, {time.monotonic() - began:.1f} s: {run['note']}")
        self.say(", ".join(f"{name} {value:.4g}" for name, value in row.figures.items()))
        return row

    def verdict_before(self, airflow: AirflowApi, moment: datetime) -> datetime:
        dag = f"monitor_{self.name}"
        runs = [run["dag_run_id"] for run in airflow.last_runs(dag, 10)]
        rows = [row for run in runs for row in airflow.tasks(dag, run) if row["end_date"]]
        ends = [datetime.fromisoformat(r["end_date"]) for r in rows if r["task_id"] == "monitor"]
        return max(end for end in ends if end < moment)

    def run_of(self, airflow: AirflowApi, cause: str) -> dict[str, Any] | None:
        rows = airflow.last_runs(f"train_{self.name}", 10)
        return next((r for r in rows if r["partition_key"] == cause and r["start_date"]), None)

    def tell_gates(self, cause: str) -> str:
        """Say how each gate judged; return by how much the challenger differs from the champion."""
        tracking = Tracking(self.settings)
        run = next(r for r in tracking.runs(self.spec.experiment) if r.tags["cause"] == cause)
        for gate in json.loads(read(tracking, run.run_id, GATES))["gates"]:
            self.say(f"gate {'passed' if gate['passed'] else 'REFUSED'}: {gate['text']}")
        value, upper = (run.metrics.get(name, nan) for name in COMPARED)
        return f"{value:+.3f} (97.5 %: below {upper:+.3f})"

    def wait(self, what: str, found: Callable[[], Any], limit: float) -> Any:
        until = time.monotonic() + limit
        while not (value := found()):
            if time.monotonic() > until:
                raise MonitoringError(f"{what}: not within {limit:.0f} s")
            time.sleep(0.2)
        return value
