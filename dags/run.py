"""What the DAGs share: a model's DAGs, a run's moment and cause, events, notes, failures.

Nothing heavy is imported at parse time.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from airflow.sdk import (
    DAG,
    Asset,
    CronTriggerTimetable,
    Param,
    PartitionedAssetTimetable,
    get_current_context,
    task,
)
from airflow.sdk.exceptions import AirflowFailException

from core.errors import RegistryError, SettingsError, StackError
from core.settings import Settings, load_settings
from core.spec import ModelSpec, load_spec, load_specs
from core.timestamps import parse_timestamp
from stack.airflow_api import LINKS, AirflowApi

log = logging.getLogger(__name__)
WRITERS = "tables"
"""The pool of one that every task writing Delta tables runs in; `gyre up` makes it."""
OWNER = "gyre"
PARAMS = {
    "as_of": Param(
        None,
        type=["null", "string"],
        format="date-time",
        description="The moment it is about (UTC); empty: the event's, else the schedule's.",
    ),
    "reason": Param(None, type=["null", "string"], description="Why, for the ledger."),
}
ONE_RUN: dict[str, Any] = {"catchup": False, "max_active_runs": 1, "params": PARAMS}
"""How every DAG runs whose task is told its moment: one run at a time, none for what was missed."""


def task_defaults(subject: str, **more: Any) -> dict[str, Any]:
    """Return a DAG's `default_args`: a second try, and an alert about `subject` if that fails."""
    return {
        "owner": OWNER,
        "retries": 1,
        "retry_delay": timedelta(seconds=3),
        "execution_timeout": timedelta(minutes=15),
        "on_failure_callback": partial(_failed, subject),
    } | more


def _failed(subject: str, context: Any) -> None:
    """Alert, once while it goes on, that a task failed for good.

    Airflow calls it after the last try; without an exception where it ended the process itself.
    """
    from mlflow_server.alerts import alert_failure  # noqa: PLC0415  (0.5 s, and seldom)
    from mlflow_server.records import Records  # noqa: PLC0415

    settings, error = load_settings(), context.get("exception")
    name = f"{context['dag'].dag_id}.{context['task'].task_id}"
    why = f"{type(error).__name__}: {error}" if error else "its process was ended"
    with closing(Records(settings)) as records:
        alert_failure(settings, records, subject, name, why, datetime.now(UTC))


def for_each_model(build: Callable[[ModelSpec], None]) -> None:
    """Build the DAGs of every model; where that fails, the other models have theirs."""
    for spec in load_specs():
        try:
            build(spec)
        except Exception:
            log.exception("%s: its DAG cannot be built", spec.name)


def model_dag(
    kind: str,
    spec: ModelSpec,
    doc: str | None,
    starts_by: Any,
    minutes: int = 15,
    **more: Any,
) -> DAG:
    """Return the DAG `<kind>_<model>`, a task of which takes at most so many minutes.

    starts_by: a cron line, or the names of two Assets.
    """
    schedule = starts_by
    if not isinstance(starts_by, str):
        first, second = (Asset(f"{name}/{spec.name}") for name in starts_by)
        schedule = PartitionedAssetTimetable(assets=first | second)
    defaults = task_defaults(spec.name, execution_timeout=timedelta(minutes=minutes))
    options: dict[str, Any] = {"default_args": defaults, **ONE_RUN, **more}
    name, text = f"{kind}_{spec.name}", f"{doc}".replace("<MODEL>", spec.name)
    about = text.splitlines()[0].partition(": ")[2]
    page = f"{load_settings().link('console')}/status/{spec.name}"
    options |= {"tags": ["gyre", spec.name], "owner_links": {OWNER: page}}
    return DAG(name, schedule=schedule, description=about, doc_md=text, **options)


def trigger_dag(name: str, starts: str, due: str, model: str, schedule: str) -> None:
    """Build `<name>_<model>`, which emits the Asset `<due>/<model>`; that starts another DAG.

    Airflow cannot join cron and partitioned assets in one DAG, and unpartitioned events are lost
    when they come at once.
    """
    # False would run what was due up to a tenth of the period before the DAG came: a weekly model
    # that is added on a Sunday would be trained at once. A minute is what the scheduler may take.
    timetable = CronTriggerTimetable(
        schedule, timezone="UTC", run_immediately=timedelta(minutes=1)
    )
    with DAG(
        dag_id=f"{name}_{model}",
        description=f"starts {starts}_{model}: {schedule}",
        schedule=timetable,
        catchup=False,
        tags=["gyre", model],
        default_args=task_defaults(model),
    ):

        @task(outlets=[Asset(f"{due}/{model}")])
        def emit(*, outlet_events: Any = None) -> None:
            _, cause = current()
            moment = cause.as_of.isoformat()
            extra = {"as_of": moment, "reason": f"schedule {schedule}"}
            send(outlet_events, f"{due}/{model}", f"schedule {moment}", extra)

        emit()


def send(outlet_events: Any, asset: str, key: str, extra: dict[str, Any]) -> None:
    """Emit an event of `asset` with the partition key `key`, once the task has succeeded."""
    event = outlet_events[Asset(asset)]
    event.extra = extra
    event.add_partitions(key)


@dataclass(frozen=True)
class Cause:
    """Why a run exists. `event` is the partition key of the Asset event that started it."""

    as_of: datetime
    key: str
    who: str
    reason: str
    event: str | None


def current() -> tuple[Settings, Cause]:
    """Read settings and cause inside a running task; the same at every try.

    Raises:
        AirflowFailException: the run's `as_of` is not an aware ISO 8601 time; no retry helps.

    """
    context: Any = get_current_context()
    run, params = context["dag_run"], context["params"]
    extras = [
        e.extra
        for events in context["triggering_asset_events"].values()
        for e in events
    ]
    try:
        as_of = resolve(params, extras, run.logical_date, run.run_after)
    except SettingsError as exc:
        raise AirflowFailException(str(exc)) from exc
    reasons = [str(extra["reason"]) for extra in extras if extra.get("reason")]
    given = params.get("reason") or (reasons[-1] if reasons else None)
    return load_settings(), Cause(
        as_of=as_of,
        key=f"{run.dag_id}/{run.run_id}",
        who=f"airflow:{run.triggering_user_name or run.run_type.value}",
        reason=given or run.partition_key or "by hand in Airflow",
        event=run.partition_key,
    )


def resolve(
    params: Mapping[str, Any],
    extras: Iterable[Mapping[str, Any]],
    logical_date: datetime | None,
    run_after: datetime,
) -> datetime:
    """Return the parameter, else the newest event's `as_of`, else the logical date, else run_after.

    Raises:
        SettingsError: a given `as_of` is not an aware ISO 8601 time, or lies in the future.

    """
    if params.get("as_of"):
        return parse_timestamp(params["as_of"], "parameter as_of")
    given = [extra["as_of"] for extra in extras if extra.get("as_of")]
    events = [parse_timestamp(as_of, "the event's as_of") for as_of in given]
    return max(events) if events else (logical_date or run_after).astimezone(UTC)


def note(settings: Settings, text: str, mlflow_run: str | None = None) -> None:
    """Show `text` and where more is on the run in Airflow; a run does not fail for want of it."""
    from mlflow_server.pages import CARD, Pages  # noqa: PLC0415

    run: Any = get_current_context()["dag_run"]
    log.info("%s", text)
    spec, pages = load_spec(run.dag_id.partition("_")[2]), Pages(settings)
    links = [f"[Console]({settings.link('console')}/status/{spec.name})"]
    try:
        if mlflow_run:
            links.append(
                f"[MLflow run, model card]({pages.run(mlflow_run)}/artifacts/{CARD})"
            )
        elif reports := pages.pages(spec.name, spec.experiment).reports:
            links.append(f"[Evidently's newest report]({reports[max(reports)]})")
        with AirflowApi(settings) as api:
            api.note(run.dag_id, run.run_id, text, LINKS.join(links))
    except (RegistryError, StackError) as exc:
        log.warning("the note is not shown: %s", exc)
