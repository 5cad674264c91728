"""What a task knows about its run, in our own words. Nothing heavy is imported at parse time."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Param, get_current_context
from airflow.sdk.exceptions import AirflowFailException

from dags.as_of import resolve
from stack.airflow_api import AirflowApi
from stack.errors import StackError
from stack.settings import Settings, load_settings

if TYPE_CHECKING:
    from datetime import datetime

WRITERS = "tables"
"""The pool of one that every task writing Delta tables runs in; `gyre up` makes it."""
ONCE_MORE: dict[str, Any] = {
    "retries": 1,
    "retry_delay": timedelta(seconds=3),
    "execution_timeout": timedelta(minutes=15),
}
"""How a task of a few seconds is tried."""
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
    logging.getLogger(__name__).info("%s", text)
    try:
        with AirflowApi(settings) as api:
            api.note(run.dag_id, run.run_id, text)
    except StackError as exc:
        logging.getLogger(__name__).warning("the note is not shown: %s", exc)
