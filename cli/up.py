"""`gyre up`: from installed packages to a served prediction. A second call changes nothing."""

import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from filelock import FileLock

from cli.terminal import OUT, progress, tell
from cli.verbs import CONSOLE, who
from core.access.private_home import close_home
from core.additions import is_present
from core.errors import (
    GyreError,
    RegistryError,
    RegistryUnavailableError,
    StackError,
)
from core.settings import Settings
from core.spec import ModelSpec, broken_specs, load_specs
from core.user_code import dataset_names
from feature_repo.online_store import redis_warning
from mlflow_server.api.pages import Pages
from mlflow_server.api.registry import Registry
from monitoring.serving_status import read_statuses
from stack.airflow_api import WRITE_POOL, AirflowApi
from stack.environment import LOGIN, load_secrets
from stack.machine import prepare
from stack.programs import start_stack, used_elsewhere
from stack.serving_client import ask_serving
from stack.supervisor import READY_SECONDS

FRESH = timedelta(hours=1)
"""Age of the newest ingest up to which no other one is started."""
LOAD_SECONDS = 150.0
"""Time for serving to load a version that has just been promoted."""
FIRST_VERSION = "first version, by gyre up"
"""Reason of a first training, in run and ledger."""
CANDIDATES = 20
"""Entities with the newest features that are asked for, until one of the population answers."""


def up(settings: Settings, as_of: datetime | None = None) -> None:
    """Start the stack of `settings.home`, ingest, train first versions, and ask each for a prediction.

    Steps that were done before are not done again.

    Args:
        settings: Settings of the stack.
        as_of: The moment that the first version is trained as of, now if absent. Ingest is always
            as of now.

    Raises:
        StackError: A step failed. Processes that this call started are ended again if one of them
            did not get ready.

    """
    if not load_specs():
        raise StackError("\n".join(broken_specs()) or "models/ has no spec: add one")
    began = time.monotonic()
    line = close_home(settings)
    if line:
        tell(line)
    (settings.home / "run").mkdir(parents=True, exist_ok=True)
    with FileLock(settings.home / "run" / "up.lock"):
        prepare(settings)
        warning = redis_warning(settings)
        if warning:
            tell(warning)
        for line in used_elsewhere(settings):
            tell(line)
        tell("processes and features …")
        with start_stack(settings, tell), _airflow(settings) as airflow:
            tell(f"  processes and features: {time.monotonic() - began:.1f} s")
            if airflow:
                airflow.pool(WRITE_POOL, 1)
            datasets = _datasets()
            if datasets:
                with _step("ingest"):
                    if airflow:
                        _ingest(settings, airflow)
                    else:
                        _ingest_here(settings, datasets)
        with _airflow(settings) as airflow:
            outcomes = _models(settings, airflow, as_of)
    left_out = [f"left out: {problem}" for problem in broken_specs()]
    seconds = time.monotonic() - began
    tell("\n  ".join([f"ready in {seconds:.0f} s", *left_out, *outcomes]))
    _addresses(settings)


def _airflow(settings: Settings) -> AbstractContextManager[AirflowApi | None]:
    """Return Airflow's API; None in a stack without Airflow."""
    if "airflow" in settings.without:
        return nullcontext()
    return AirflowApi(settings, patience=READY_SECONDS)


@contextmanager
def _step(name: str) -> Iterator[None]:
    tell(f"{name} …")
    began = time.monotonic()
    with progress(f"up: {name}", OUT):
        yield
    tell(f"  {name}: {time.monotonic() - began:.1f} s")


def _ingest(settings: Settings, airflow: AirflowApi) -> None:
    """Run the DAG `ingest`, unless it has within the hour and its values are all there."""
    for last in airflow.last_runs("ingest", state="success"):
        is_fresh = datetime.fromisoformat(last["end_date"]) > datetime.now(UTC) - FRESH
        has_rows = all(_has_rows(settings, spec) for spec in load_specs())
        if is_fresh and has_rows and _are_features_online(settings):
            tell(f"    done within the hour: {last['dag_run_id']}")
            return
    try:
        airflow.follow("ingest", airflow.trigger("ingest", {}), tell)
    except StackError as exc:  # one dataset failed: models of others can be trained
        tell(f"    {exc}")


def _datasets() -> list[str]:
    """Return the datasets that the models read; none where all views and labels are a team's."""
    names = [name for spec in load_specs() for name in spec.datasets]
    return dataset_names(*names)


def _ingest_here(settings: Settings, datasets: Iterable[str]) -> None:
    """Ingest each dataset in this process, as a stack without Airflow has no DAGs."""
    from feature_engine.ingest.pipeline import ingest  # noqa: PLC0415  (seconds)

    for dataset in datasets:
        try:
            tell(f"    {ingest(settings, dataset, datetime.now(UTC)).summary()}")
        except GyreError as exc:  # models of other datasets can be trained
            tell(f"    {dataset}: {exc}")


def _has_rows(settings: Settings, spec: ModelSpec) -> bool:
    """Whether the model's dataset, if it has one, was ingested."""
    return all((settings.data / "raw" / name).exists() for name in spec.datasets)


def _are_features_online(settings: Settings) -> bool:
    """Whether serving has found features in Redis, which it has not just after its start."""
    with suppress(httpx.HTTPError):
        for status in read_statuses(settings).values():
            return bool(status["resources"]["redis"]["ok"])
    return False


def _models(
    settings: Settings, airflow: AirflowApi | None, as_of: datetime | None
) -> list[str]:
    """Have every model answer; return a line for each: its version, or why it does not answer.

    Raises:
        StackError: No model answers.

    """
    answering: list[str] = []
    silent: list[str] = []
    for spec in load_specs():
        try:
            answering.append(_model(settings, airflow, spec, as_of))
        except (StackError, RegistryError) as exc:
            silent.append(f"{spec.name}: {exc}")
    if not answering:
        _addresses(settings)
        silent.append("no model answers; the stack stays up: gyre status")
        raise StackError("\n".join(silent))
    return answering + silent


def _model(
    settings: Settings,
    airflow: AirflowApi | None,
    spec: ModelSpec,
    as_of: datetime | None,
) -> str:
    """Have a model answer, and return a line with its version; wait for an MLflow that is busy."""
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            if not spec.is_trained_here and not Registry(settings).production(
                spec.name
            ):
                return f"{spec.name}: no version yet: {spec.command}"
            with _step(f"model {spec.name}"):
                version = _production(settings, airflow, spec, as_of)
                _reconcile(settings, spec.name)
            if spec.feature_service and not spec.serving.external:
                with _step(f"prediction of {spec.name}"):
                    _predict(settings, spec)
            runs = Pages(settings).experiment(spec.experiment)
        except RegistryUnavailableError as exc:
            if time.monotonic() > until:
                raise
            tell(f"    {exc}")
            time.sleep(1)
            continue
        return f"{spec.name}: version {version} is in production; runs: {runs}"


def _production(
    settings: Settings,
    airflow: AirflowApi | None,
    spec: ModelSpec,
    as_of: datetime | None,
) -> str:
    """Return the version in production; train a first one if there is none.

    Raises:
        StackError: The dataset has no rows, or the training failed or promoted nothing.
        RegistryError: MLflow does not answer.

    """
    registry = Registry(settings)
    name = spec.name
    version = registry.production(name)
    if version:
        return version
    if not _has_rows(settings, spec):
        raise StackError(
            f"not trained: {spec.dataset} has no rows, see ingest above; then: "
            f"gyre ingest {spec.dataset}; gyre train {name}"
        )
    if airflow:
        note = _first_training(airflow, spec, as_of)
    else:
        note = _first_training_here(settings, spec, as_of)
    version = registry.production(name)
    if version:
        return version
    why = note or "see its run in Airflow"
    raise StackError(
        f"the training of {name} promoted nothing: {why}. Again: gyre train {name}"
    )


def _first_training_here(
    settings: Settings, spec: ModelSpec, as_of: datetime | None
) -> str:
    """Train in this process, as a stack without Airflow has no DAGs; return the outcome."""
    from training.chain import train  # noqa: PLC0415  (seconds)

    report = train(
        settings,
        spec,
        as_of or datetime.now(UTC),
        key=f"up-{uuid.uuid4().hex[:12]}",
        reason=FIRST_VERSION,
        who=who(),
    )
    return report.outcome


def _first_training(
    airflow: AirflowApi, spec: ModelSpec, as_of: datetime | None
) -> str | None:
    """Follow the training that runs, or a new one, and the question about its version.

    Returns:
        The note of the run that ended last.

    Raises:
        StackError: A task failed, or a version waits for a person.

    """
    train = f"train_{spec.name}"
    approve = f"approve_{spec.name}"
    asks = spec.promotion.approval
    note: str | None = None
    question = _open_question(airflow, approve) if asks else None
    if question is None:
        running = airflow.last_runs(train, state="running")
        if running:
            run = running[0]["dag_run_id"]
        else:
            parameters = {"reason": FIRST_VERSION}
            if as_of:
                parameters["as_of"] = as_of.isoformat()
            run = airflow.trigger(train, parameters)
        note = airflow.follow(train, run, tell)["note"]
        question = _open_question(airflow, approve) if asks else None
    if question:
        note = airflow.follow(approve, question, tell)["note"]
    return note


def _open_question(airflow: AirflowApi, dag: str) -> str | None:
    """Return the newest run that waits for a person; None if Airflow has not read the DAG yet."""
    runs = airflow.last_runs(dag, 20)
    open_runs = [run for run in runs if run["state"] in {"queued", "running"}]
    return str(open_runs[0]["dag_run_id"]) if open_runs else None


def _reconcile(settings: Settings, model: str) -> None:
    """Finish a promotion that died with the stack, and record changes that bypassed Gyre."""
    from mlflow_server.promotion.ledger import Ledger  # noqa: PLC0415  (seconds)
    from mlflow_server.promotion.promote import reconcile  # noqa: PLC0415

    with Ledger(settings) as ledger:
        reconcile(Registry(settings), ledger, model)


def _predict(settings: Settings, spec: ModelSpec) -> None:
    """Ask for stored entities until the version in production answers.

    Stored entities have no request data: a version that needs some names it in its answer.
    """
    newest = newest_entities(settings, spec, CANDIDATES)
    problem = "no answer"
    deadline = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < deadline:
        for entity in newest:
            with suppress(httpx.HTTPError):
                answer = ask_serving(
                    settings, f"/models/{spec.name}/predict", entity, seconds=5
                )
                if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
                    tell(f"    {more_fields(settings, answer)}")
                    return
                if answer.is_success and answer.json()["in_population"]:
                    tell(f"    {answer.text}")
                    return
                problem = answer.text[:200]
        time.sleep(0.5)
    raise StackError(
        "no member of the population got a prediction among "
        f"the {len(newest)} entities with the newest features: {problem}"
    )


def newest_entities(
    settings: Settings, spec: ModelSpec, count: int | None = None
) -> list[dict[str, Any]]:
    """Return the keys of stored entities, those with the newest features first.

    Args:
        settings: Settings of the stack.
        spec: Model whose entities they are.
        count: Number of entities at most; all by default.

    """
    from feature_repo.published.service import service_of  # noqa: PLC0415  (seconds)
    from feature_repo.views import entities  # noqa: PLC0415

    service = service_of(settings, spec)
    rows = entities(service, spec.entity_key, datetime.now(UTC), count)
    return list[dict[str, Any]](rows.to_pylist())


def more_fields(settings: Settings, answer: httpx.Response) -> str:
    """Return a line with the fields that a request needs beside the key, in serving's words."""
    detail = str(answer.json()["detail"]).removesuffix(", found none")
    return (
        "ready; a request needs more than the key, try one at "
        f"{settings.serving_address}/docs: {detail}"
    )


def _addresses(settings: Settings) -> None:
    docs = f"{settings.serving_address}/docs"
    console = f"{settings.console_address}/"
    if settings.starts("airflow"):
        password = load_secrets(settings)["password"]
        if not sys.stdout.isatty():  # a file of it, or a log, others may read
            password = f"the password in {settings.home}/airflow/passwords.json"
        login = f"{LOGIN} / {password}"
        tell(f"Airflow   {settings.airflow_address:<32}{login}")
    elif settings.airflow_url:
        login = f"user {settings.airflow_user or LOGIN}"
        tell(f"Airflow   {settings.airflow_address:<32}{login}")
    else:
        tell("Airflow   none: nothing is ingested, trained or monitored by itself")
    tell(f"MLflow    {settings.mlflow_address}")
    if is_present(CONSOLE):
        tell(f"Console   {console:<32}is the loop healthy, and why: gyre open console")
    tell(f"Serving   {docs:<32}try requests: gyre open docs")
