"""`gyre up`: from installed packages to a served prediction. Twice is the same as once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
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
from stack.errors import DataError, RegistryError, StackError
from stack.preflight import ENV_FILE, LAYOUT, LAYOUT_FILE, kept_settings, problems
from stack.processes import last_lines, render, restart, start, states, wait_ready
from stack.settings import PROJECT
from stack.spec import MODELS, broken_specs, load_specs
from stack.status import UNKNOWN, production
from stack.tokens import serving_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stack.settings import Settings
    from stack.spec import ModelSpec

FOLDERS = ("run", "logs", "redis", "mlflow", "airflow", "feast", "features", "serving", "data")
FRESH = timedelta(hours=1)
OPENED, LOADED = 20.0, 30.0
"""Seconds that serving may take to open Feast, and to load what has just been promoted."""
STORES = ("redis", "mlflow")
"""What `feast apply` asks; the other processes get ready meanwhile."""
READERS = ("console", "consumer", "dag-processor")
"""They read models/ and datasets when they start: what came since is seen by the next `up`."""
CANDIDATES = 20
"""Entities with the newest features; the first in the population gets the first prediction."""


def up(settings: Settings, as_of: datetime | None = None) -> None:
    """Bring the stack of `settings.home` to where it serves; change nothing that is already there.

    as_of: what the first version is trained as of, now if absent; ingest is always as of now.

    Raises:
        StackError: what failed; processes that this call started are ended again if one of them
            did not get ready.

    """
    found = problems(os.environ, sys.version_info[:2])
    if found:
        raise StackError("\n".join(found))
    began, outcomes = time.monotonic(), [f"left out: {problem}" for problem in broken_specs()]
    for name in FOLDERS:
        (settings.home / name).mkdir(parents=True, exist_ok=True)
    (settings.home / LAYOUT_FILE).write_text(f"{LAYOUT}\n")
    with FileLock(settings.home / "run" / "up.lock"):
        make_secrets(settings)
        write_feast_config(settings)
        with _step("processes and features"):
            _start(settings)
        with AirflowApi(settings) as airflow:
            airflow.pool("tables", 1)
            if settings.replay is None:  # else what happens there is the past, and gyre replay's
                with _step("ingest"):
                    _ingest(settings, airflow)
                outcomes += _models(settings, airflow, as_of)
    typer.echo("\n  ".join((f"ready in {time.monotonic() - began:.0f} s", *outcomes)))
    _addresses(settings)


@contextmanager
def _step(name: str) -> Iterator[None]:
    typer.echo(f"{name} …")
    began = time.monotonic()
    yield
    typer.echo(f"  {name}: {time.monotonic() - began:.1f} s")


def _start(settings: Settings) -> None:
    if not load_specs():
        raise StackError("\n".join(broken_specs()) or "models/ has no spec: add one")
    for name in sorted(os.environ.keys() - kept_settings(settings.home).keys()):
        if name.startswith("GYRE_SOURCES__"):
            line = f'echo "{name}=${name}" >> {settings.home / ENV_FILE}'
            typer.echo(f"  {name} is set in this shell only; for Airflow, run: {line}")
    wanted = programs(settings)
    text, conf = render(settings, wanted), settings.home / "run" / "supervisord.conf"
    there = states(settings) is not None and conf.read_text() == text
    if not there:
        for line in end_stack(settings):  # of a killed supervisor, or with other settings
            typer.echo(f"  ended left-over {line}")
    try:
        if there:
            for name in restart(settings, READERS, _models_changed()):
                typer.echo(f"  {name}: started again")
        else:
            _migrate(settings)
            start(settings, text)
        first = [program for program in wanted if program.name in STORES]
        wait_ready(settings, first, typer.echo)
        with _step("  features (feast apply)"):
            _publish(settings)
        wait_ready(settings, [each for each in wanted if each not in first], typer.echo)
    except BaseException:  # also Ctrl-C: nothing half-started stays
        if not there:
            end_stack(settings)
        raise


def _publish(settings: Settings) -> None:
    """Publish all definitions; where a dataset's module is broken, those of the others."""
    try:
        _tool(settings, "feast", "apply")
    except StackError:
        from feature_repo.datasets import load_datasets  # noqa: PLC0415  (seconds)
        from feature_repo.store import publish_beside  # noqa: PLC0415

        datasets, broken = load_datasets()
        if not broken:
            raise
        for dataset in datasets:
            publish_beside(settings, dataset)
        typer.echo("\n".join(f"    not published: {problem}" for problem in broken))


def _models_changed() -> float:
    return max(path.stat().st_mtime for path in (MODELS, *MODELS.glob("*.toml")))


def _migrate(settings: Settings) -> None:
    stamp, now = settings.home / "airflow" / "migrated", version("apache-airflow")
    if not stamp.exists() or stamp.read_text() != now:
        typer.echo("  airflow db migrate")
        _tool(settings, "airflow", "db", "migrate")
        stamp.write_text(now)


def _tool(settings: Settings, tool: str, *arguments: str) -> None:
    """Run a tool's own command beside the feature definitions, its output in logs/<tool>.log."""
    with (settings.home / "logs" / f"{tool}.log").open("a") as log:
        done = subprocess.run(
            [Path(sys.executable).parent / tool, *arguments],
            cwd=PROJECT / "feature_repo",
            env=process_environment(settings) | airflow_environment(settings),
            stdout=log,
            stderr=log,
            check=False,
        )
    if done.returncode:
        command, tail = " ".join((tool, *arguments)), last_lines(settings, tool)
        raise StackError(f"{command} failed ({done.returncode}):\n{tail}")


def _ingest(settings: Settings, airflow: AirflowApi) -> None:
    good = airflow.last_runs("ingest", state="success")
    if (
        good
        and all(_has_rows(settings, spec) for spec in load_specs())
        and _filled(settings)
        and datetime.fromisoformat(good[0]["end_date"]) > datetime.now(UTC) - FRESH
    ):
        typer.echo(f"    done within the hour: {good[0]['dag_run_id']}")
        return
    try:
        airflow.follow("ingest", airflow.trigger("ingest", {}), typer.echo)
    except StackError as exc:  # of one dataset: the others' models can be trained
        typer.echo(f"    {exc}")


def _has_rows(settings: Settings, spec: ModelSpec) -> bool:
    return (settings.data / "raw" / spec.dataset).exists()


def _filled(settings: Settings) -> bool:
    """Whether Redis holds the features; serving says so once it has opened Feast."""
    until = time.monotonic() + OPENED
    while time.monotonic() < until:
        with suppress(httpx.HTTPError):
            found = httpx.get(f"{settings.serving_address}/health/ready", timeout=5).json()
            redis = found["resources"]["redis"]
            if redis["ok"] or "gyre ingest" in redis["detail"]:
                return bool(redis["ok"])
        time.sleep(0.5)
    return False


def _models(settings: Settings, airflow: AirflowApi, as_of: datetime | None) -> list[str]:
    """Have every model answer; say of each which version does, or why none and what to do.

    Raises:
        StackError: none does.

    """
    answering, without = list[str](), list[str]()
    for spec in load_specs():
        try:
            with _step(f"model {spec.name}"):
                version = _model(settings, airflow, spec, as_of)
                _reconcile(settings, spec.name)
            with _step(f"prediction of {spec.name}"):
                _predict(settings, spec)
            answering.append(f"{spec.name}: version {version} is in production")
        except StackError as exc:
            without.append(f"{spec.name}: {exc}")
    if not answering:
        _addresses(settings)
        raise StackError("\n".join([*without, "no model answers; the stack stays up: gyre status"]))
    return answering + without


def _model(settings: Settings, airflow: AirflowApi, spec: ModelSpec, as_of: datetime | None) -> str:
    """Return the version in production, a first one if there is none."""
    name = spec.name
    current = production(settings, name)
    if current == UNKNOWN:
        raise StackError(f"MLflow at {settings.mlflow_address} does not say what is in production")
    if current is None:
        if not _has_rows(settings, spec):
            _check_dataset(spec)
            line = f"GYRE_SOURCES__{spec.dataset.upper()}=… in {settings.home / ENV_FILE}"
            then = f"gyre ingest {spec.dataset}; gyre train {name}"
            raise StackError(
                f"not trained: {spec.dataset} has no rows (see ingest). {line}; {then}"
            )
        dag = f"train_{name}"
        asked = {"as_of": as_of.isoformat()} if as_of else {}
        going = airflow.last_runs(dag, state="running")  # such as one that waits for approval
        first = {"reason": "first version, by gyre up"} | asked
        run = going[0]["dag_run_id"] if going else airflow.trigger(dag, first)
        note = airflow.follow(dag, run, typer.echo)["note"]
        current = production(settings, name)
        if current is None:
            why = note or "see its run in Airflow"
            raise StackError(f"{dag} promoted nothing: {why}. Again: gyre train {name}")
    return current


def _reconcile(settings: Settings, model: str) -> None:
    """Finish a promotion that died with the stack, and write down what was changed past Gyre."""
    from mlflow_server.ledger import Ledger  # noqa: PLC0415  (seconds)
    from mlflow_server.promotion import reconcile  # noqa: PLC0415
    from mlflow_server.registry import Registry  # noqa: PLC0415

    try:
        with closing(Ledger(settings)) as ledger:
            reconcile(Registry(settings), ledger, model)
    except RegistryError as exc:
        typer.echo(f"    {exc}")


def _check_dataset(spec: ModelSpec) -> None:
    from feature_repo.datasets import load_dataset  # noqa: PLC0415  (seconds, and seldom)

    try:
        load_dataset(spec.dataset)
    except DataError as exc:
        raise StackError(f"not trained: {exc}") from exc


def _predict(settings: Settings, spec: ModelSpec) -> None:
    """Ask for a real entity until the version just promoted is loaded."""
    problem, until = "no answer", time.monotonic() + LOADED
    while time.monotonic() < until:
        with suppress(httpx.HTTPError):
            found, problem = _first_prediction(settings, spec)
            if found:
                typer.echo(f"    {found}")
                return
        time.sleep(0.5)
    raise StackError(f"serving gave no prediction within {LOADED:.0f} s: {problem}")


def _first_prediction(settings: Settings, spec: ModelSpec) -> tuple[str, str]:
    """Return the answer for the first of CANDIDATES that has one; else nothing, and the problem."""
    from feature_repo.features import entities  # noqa: PLC0415  (a second, and only here)

    url, key = f"{settings.serving_address}/models/{spec.name}/predict", spec.entity_key
    views = [path.stem for path in settings.features.glob("*.parquet")]
    known = entities(settings, views, key, datetime.now(UTC), CANDIDATES)
    headers = serving_headers(settings)
    for entity in known:
        answer = httpx.post(url, json=entity, headers=headers, timeout=5)
        if answer.status_code not in {httpx.codes.OK, httpx.codes.NOT_FOUND}:
            return "", answer.text[:200]
        if answer.is_success and answer.json()["in_population"]:
            return answer.text, ""
    asked = f"the {len(known)} with the newest features are not in the population"
    return f"ask for {', '.join(key)} of yours: {asked}", ""


def _addresses(settings: Settings) -> None:
    serving, login = settings.serving_address, f"{LOGIN} / {load_secrets(settings)['password']}"
    typer.echo(f"Airflow   {settings.airflow_address:<32}{login}")
    typer.echo(f"MLflow    {settings.mlflow_address}")
    typer.echo(f"Console   {settings.console_address + '/':<32}is the loop healthy, and why")
    typer.echo(f"Serving   {serving + '/docs':<32}try requests")
