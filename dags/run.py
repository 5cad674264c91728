"""Code that the DAGs share: building them, the inputs of a run, its note, alerts.

Nothing heavy is imported at parse time.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    Param,
    get_current_context,
)

from core.errors import GyreError
from core.settings import Settings, load_settings
from core.spec import ModelSpec, load_spec, load_specs
from core.timestamps import parse_timestamp
from dags.failures import alert_of_failure
from stack.airflow_api import AirflowApi

log = logging.getLogger(__name__)
FORM = {
    "as_of": Param(
        None,
        type=["null", "string"],
        format="date-time",
        description="Time of the run (UTC). Default: that of its cause, else its start.",
    )
}
"""Fields of every DAG's trigger form."""


def task_defaults(subject: str) -> dict[str, Any]:
    """Return a DAG's `default_args`: a second try, and an alert about `subject` if that fails."""
    return {
        "owner": "gyre",
        "retries": 1,
        "retry_delay": timedelta(seconds=3),
        "execution_timeout": timedelta(minutes=30),
        "on_failure_callback": partial(alert_of_failure, subject),
    }


def for_each_model(build: Callable[[ModelSpec], None]) -> None:
    """Build a DAG for every model; where that fails for one, the other models have theirs."""
    for spec in load_specs():
        try:
            build(spec)
        except Exception:
            log.exception("%s: its DAG cannot be built", spec.name)


def clock_or_signal(cron: str, asset: str) -> AssetOrTimeSchedule:
    """Return a schedule by `cron` (UTC) and, beside it, by events of the Asset named `asset`.

    An event is a signal, never data: events that come while a run is active start one run after
    it, and a DAG that is paused has none. A run reads its causes when it starts.
    """
    # By default Airflow makes up for a run that was due up to a tenth of the period before the DAG
    # came: a weekly model that is added on a Sunday would be trained at once. The scheduler may take
    # a minute.
    timetable = CronTriggerTimetable(
        cron, timezone="UTC", run_immediately=timedelta(minutes=1)
    )
    return AssetOrTimeSchedule(timetable=timetable, assets=Asset(asset))


def new_dag(
    dag_id: str, doc: str, schedule: Any, subject: str = "", **options: Any
) -> DAG:
    """Return a DAG without catch-up that has one active run, unless `options` say otherwise.

    Args:
        dag_id: Its id.
        doc: Text of its page; the first line is its description.
        schedule: A cron expression (UTC), or another schedule of Airflow.
        subject: Name in alerts about its tasks, and its tag; the DAG's id by default.
        options: Further arguments of the DAG.

    """
    if isinstance(schedule, str):
        # Of a string Airflow takes its own default time zone.
        schedule = CronTriggerTimetable(schedule, timezone="UTC")
    kind, _, model = dag_id.partition("_")
    first_line = doc.partition("\n")[0]
    values: dict[str, Any] = {"params": FORM, "max_active_runs": 1} | options
    return DAG(
        dag_id,
        dag_display_name=f"{kind.title()} {model}".strip(),
        description=first_line.partition(": ")[2],
        doc_md=doc,
        schedule=schedule,
        catchup=False,
        tags=["gyre", subject or dag_id],
        default_args=task_defaults(subject or dag_id),
        **values,
    )


def model_dag(
    kind: str, spec: ModelSpec, doc: str, schedule: Any, **options: Any
) -> DAG:
    """Return the DAG `<kind>_<model>`, whose owner links to the model's page in the console."""
    dag_id = f"{kind}_{spec.name}"
    text = doc.replace("<MODEL>", spec.name)
    links = {"gyre": f"{load_settings().link('console')}/status/{spec.name}"}
    return new_dag(dag_id, text, schedule, spec.name, owner_links=links, **options)


@dataclass(frozen=True)
class Run:
    """The run that a task belongs to, the same at every try.

    Attributes:
        key: Name of the run in MLflow's tags.
        actor: Name of who started it, for the ledger.
        start: Its start, aware UTC.
        wanted_moment: The moment that the form or a backfill asks for.
        form: The values of the trigger form.

    """

    key: str
    actor: str
    start: datetime
    wanted_moment: datetime | None
    form: Mapping[str, Any]

    @property
    def as_of(self) -> datetime:
        return self.wanted_moment or self.start


def current_run() -> Run:
    """Return the run of the running task.

    Raises:
        SettingsError: `as_of` is not an aware ISO 8601 time, or lies in the future.

    """
    context: Any = get_current_context()
    dag_run = context["dag_run"]
    form = context["params"]
    run_type = dag_run.run_type.value
    actor = dag_run.triggering_user_name or run_type
    wanted_moment = None
    if form.get("as_of"):
        wanted_moment = parse_timestamp(form["as_of"], "parameter as_of")
    elif run_type == "backfill":
        wanted_moment = dag_run.logical_date.astimezone(UTC)
    return Run(
        key=f"{dag_run.dag_id}/{dag_run.run_id}",
        actor=f"airflow:{actor}",
        start=dag_run.start_date.astimezone(UTC),
        wanted_moment=wanted_moment,
        form=form,
    )


def task_inputs() -> tuple[Settings, ModelSpec]:
    """Return the settings and the spec of the running task's model."""
    context: Any = get_current_context()
    return load_settings(), load_spec(context["dag"].dag_id.partition("_")[2])


def note(text: str, mlflow_run: str | None = None) -> None:
    """Show a text on the run in Airflow, with a link to its MLflow run.

    If Airflow does not answer, a warning is logged and the run goes on.
    """
    from mlflow_server.api.pages import CARD, Pages  # noqa: PLC0415

    log.info("%s", text)
    settings = load_settings()
    dag_run: Any = get_current_context()["dag_run"]
    link = ""
    try:
        if mlflow_run:
            run_page = Pages(settings).run(mlflow_run)
            link = f"[MLflow run, model card]({run_page}/artifacts/{CARD})"
        with AirflowApi(settings) as airflow:
            airflow.note(dag_run.dag_id, dag_run.run_id, text, link)
    except GyreError as exc:
        log.warning("the note is not shown: %s", exc)


def put_into_production(
    mlflow_run: str, version: str, *, who: str | None = None, comment: str = ""
) -> str:
    """Promote a version or begin its rollout; return the outcome, which is the run's note.

    Args:
        mlflow_run: The run that trained it.
        version: The version.
        who: The user of Airflow who approved it; None: the one who started the training.
        comment: A remark of that user.

    """
    from mlflow_server.api.tracking import Tracking  # noqa: PLC0415  (heavy)
    from training.stages.register import promote_challenger  # noqa: PLC0415

    settings, spec = task_inputs()
    tracking = Tracking(settings)
    tags = tracking.run(mlflow_run).tags
    reason = tags["reason"]
    with tracking.on_record(mlflow_run):
        outcome = promote_challenger(
            settings,
            spec,
            mlflow_run,
            version,
            who=f"airflow:{who}" if who else tags["who"],
            reason=f"{reason}; {comment}" if comment else reason,
        )
    note(outcome, mlflow_run)
    return outcome
