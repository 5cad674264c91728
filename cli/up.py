"""`gyre up`: from installed packages to a served prediction. Twice is the same as once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import typer
from filelock import FileLock

from cli.programs import programs
from stack.airflow_api import AirflowApi
from stack.ending import end_stack
from stack.environment import (
    LOGIN,
    airflow_environment,
    load_secrets,
    make_secrets,
    process_environment,
    write_feast_config,
)
from stack.errors import StackError
from stack.preflight import problems
from stack.processes import last_lines, render, restart_fallen, running, start, wait_ready
from stack.settings import PROJECT
from stack.spec import load_spec
from stack.status import UNKNOWN, production

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stack.settings import Settings

FOLDERS = ("run", "logs", "redis", "mlflow", "airflow", "feast", "features", "serving", "data")
FRESH = timedelta(hours=1)
ENTITIES = (4, 18, 21, 1, 2)
"""Of the shipped data; the first that is in the population gets the first prediction."""


def up(settings: Settings) -> None:
    """Bring the stack of `settings.home` to where it serves; change nothing that is already there.

    Raises:
        StackError: what failed; processes that this call started are ended again if one of them
            did not get ready.

    """
    found = problems(os.environ, sys.version_info[:2])
    if found:
        raise StackError("\n".join(found))
    began = time.monotonic()
    for name in FOLDERS:
        (settings.home / name).mkdir(parents=True, exist_ok=True)
    with FileLock(settings.home / "run" / "up.lock"):
        make_secrets(settings)
        write_feast_config(settings)
        with _step("processes"):
            _start(settings)
        with _step("features (feast apply)"):
            _apply(settings)
        with AirflowApi(settings) as airflow:
            airflow.pool("tables", 1)
            with _step("ingest"):
                _ingest(airflow)
            with _step("model"):
                _model(settings, airflow)
        with _step("prediction"):
            _predict(settings)
    typer.echo(f"ready in {time.monotonic() - began:.0f} s")
    _addresses(settings)


@contextmanager
def _step(name: str) -> Iterator[None]:
    typer.echo(f"{name} …")
    began = time.monotonic()
    yield
    typer.echo(f"  {name}: {time.monotonic() - began:.1f} s")


def _start(settings: Settings) -> None:
    wanted = programs(settings)
    text, conf = render(settings, wanted), settings.home / "run" / "supervisord.conf"
    if running(settings) and conf.exists() and conf.read_text() == text:
        for name in restart_fallen(settings):
            typer.echo(f"  {name}: started again")
        wait_ready(settings, wanted, typer.echo)
        return
    for line in end_stack(settings):  # of a killed supervisor, or with other settings
        typer.echo(f"  ended left-over {line}")
    try:
        _migrate(settings)
        start(settings, text)
        wait_ready(settings, wanted, typer.echo)
    except BaseException:  # also Ctrl-C: nothing half-started stays
        end_stack(settings)
        raise


def _migrate(settings: Settings) -> None:
    stamp, now = settings.home / "airflow" / "migrated", version("apache-airflow")
    if not stamp.exists() or stamp.read_text() != now:
        typer.echo("  airflow db migrate")
        _tool(settings, ["airflow", "db", "migrate"], airflow_environment(settings))
        stamp.write_text(now)


def _apply(settings: Settings) -> None:
    _tool(settings, ["feast", "apply"], cwd=PROJECT / "feature_repo")


def _tool(
    settings: Settings, command: list[str], more: dict[str, str] | None = None, cwd: Path = PROJECT
) -> None:
    """Run a tool's own command with its output in logs/<tool>.log."""
    tool = str(Path(sys.executable).parent / command[0])
    with (settings.home / "logs" / f"{command[0]}.log").open("a") as log:
        environment = process_environment(settings) | (more or {})
        done = subprocess.run(
            [tool, *command[1:]], cwd=cwd, env=environment, stdout=log, stderr=log, check=False
        )
    if done.returncode:
        tail = last_lines(settings, command[0])
        raise StackError(f"{' '.join(command)} failed ({done.returncode}):\n{tail}")


def _ingest(airflow: AirflowApi) -> None:
    good = airflow.last_runs("ingest", state="success")
    if good and datetime.fromisoformat(good[0]["end_date"]) > datetime.now(UTC) - FRESH:
        typer.echo(f"    done within the hour: {good[0]['dag_run_id']}")
        return
    airflow.follow("ingest", airflow.trigger("ingest", {}), typer.echo)


def _model(settings: Settings, airflow: AirflowApi) -> None:
    name = settings.default_model
    current = production(settings, name)
    if current == UNKNOWN:
        raise StackError(f"MLflow at {settings.mlflow_address} does not say what is in production")
    if current is None:
        dag = f"train_{name}"
        run = airflow.trigger(dag, {"reason": "first version, by gyre up"})
        note = airflow.follow(dag, run, typer.echo).note
        current = production(settings, name)
        if current is None:
            raise StackError(f"{dag} promoted nothing: {note or 'see its run in Airflow'}")
    typer.echo(f"    {name} version {current} is in production")


def _predict(settings: Settings, patience: float = 30) -> None:
    """Ask for a real entity until the version just promoted is loaded."""
    url, key = f"{settings.serving_address}/predict", load_spec(settings.default_model).entity_key
    problem, until = "no answer", time.monotonic() + patience
    while time.monotonic() < until:
        with suppress(httpx.HTTPError):
            statuses = set()
            for entity in ENTITIES:
                answer = httpx.post(url, json={key: entity}, timeout=5)
                statuses.add(answer.status_code)
                if answer.is_success and answer.json()["in_population"]:
                    typer.echo(f"    {answer.text}")
                    return
                problem = answer.text[:200]
            if statuses <= {httpx.codes.OK, httpx.codes.NOT_FOUND}:  # other data than the shipped
                typer.echo(f"    ask for a {key} of yours: {ENTITIES} are not in the population")
                return
        time.sleep(0.5)
    raise StackError(f"serving gave no prediction within {patience:.0f} s: {problem}")


def _addresses(settings: Settings) -> None:
    login = f"{LOGIN} / {load_secrets(settings)['password']}"
    for name, address, extra in (
        ("Airflow", settings.airflow_address, login),
        ("MLflow", settings.mlflow_address, ""),
        ("Serving", f"{settings.serving_address}/", "status page"),
        ("", f"{settings.serving_address}/docs", "try requests"),
    ):
        typer.echo(f"{name:<10}{address:<32}{extra}")
