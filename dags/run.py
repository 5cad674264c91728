"""What a task knows about its run, in our own words. Nothing heavy is imported at parse time."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import Param, get_current_context
from airflow.sdk.exceptions import AirflowFailException

from dags.as_of import resolve
from stack.airflow_api import AirflowApi
from stack.errors import StackError
from stack.settings import Settings, load_settings
from stack.spec import ModelSpec, load_specs

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)
WRITERS = "tables"
"""The pool of one that every task writing Delta tables runs in; `gyre up` makes it."""
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
        "retries": 1,
        "retry_delay": timedelta(seconds=3),
        "execution_timeout": timedelta(minutes=15),
        "on_failure_callback": partial(_ended, subject, failed=True),
        "on_success_callback": partial(_ended, subject, failed=False),
    } | more


def _ended(subject: str, context: Any, *, failed: bool) -> None:
    """Alert, once while it goes on, that a task failed for good; tell once that it no longer does.

    Airflow calls it after the last try; without an exception where it ended the process itself.
    """
    from mlflow_server.alerts import alert_failure, end_failures, failing  # noqa: PLC0415

    settings, error, now = load_settings(), context.get("exception"), datetime.now(UTC)
    task = f"{context['dag'].dag_id}.{context['task'].task_id}"
    if not failed and not failing(settings, task).exists():
        return
    from mlflow_server.records import Records  # noqa: PLC0415  (0.5 s, and seldom)

    with closing(Records(settings)) as records:
        if failed:
            why = f"{type(error).__name__}: {error}" if error else "its process was ended"
            alert_failure(settings, records, subject, task, why, now)
        else:
            end_failures(settings, records, subject, task, now)


def for_each_model(build: Callable[[ModelSpec], None]) -> None:
    """Build the DAGs of every model; where that fails, the other models have theirs."""
    for spec in load_specs():
        try:
            build(spec)
        except Exception:
            log.exception("%s: its DAG cannot be built", spec.name)


def shown(*names: str) -> list[EmptyOperator]:
    """Return tasks that only show by their name what a run came to; no process runs them."""
    return [EmptyOperator(task_id=name, on_success_callback=None) for name in names]


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
    extras = [e.extra for events in context["triggering_asset_events"].values() for e in events]
    try:
        as_of = resolve(params, extras, run.logical_date, run.run_after)
    except ValueError as exc:
        raise AirflowFailException(str(exc)) from exc
    return load_settings(), Cause(
        as_of=as_of,
        key=f"{run.dag_id}/{run.run_id}",
        who=f"airflow:{run.triggering_user_name or run.run_type.value}",
        reason=reason(params.get("reason"), extras, run.partition_key),
        event=run.partition_key,
    )


def reason(given: str | None, extras: list[dict[str, Any]], event: str | None) -> str:
    """Return what a person gave, else what the newest event says, else what started the run."""
    said = [str(extra["reason"]) for extra in extras if extra.get("reason")]
    return given or (said[-1] if said else None) or event or "by hand in Airflow"


def note(settings: Settings, text: str) -> None:
    """Show `text` on the run in Airflow; a run does not fail for want of its note."""
    run: Any = get_current_context()["dag_run"]
    log.info("%s", text)
    try:
        with AirflowApi(settings) as api:
            api.note(run.dag_id, run.run_id, text)
    except StackError as exc:
        log.warning("the note is not shown: %s", exc)
