"""The run that a task belongs to, and code that the steps of several DAGs share."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from core.errors import GyreError
from core.settings import Settings, load_settings
from core.spec import ModelSpec, load_spec
from core.timestamps import parse_timestamp
from stack.airflow_api import AirflowApi

log = logging.getLogger(__name__)


class SkippedError(GyreError):
    """There is nothing to do: Airflow shows the task as skipped, and skips those behind it."""


@dataclass(frozen=True)
class Run:
    """The run that a task belongs to, the same at every try.

    Attributes:
        dag: Id of the DAG.
        run_id: Id of the run.
        actor: Name of who started it, for the ledger.
        start: Its start, aware UTC.
        wanted_moment: The moment that the form or a backfill asks for.
        form: The values of the trigger form.

    """

    dag: str
    run_id: str
    actor: str
    start: datetime
    wanted_moment: datetime | None
    form: Mapping[str, Any]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Read the run as `run_of` of dags/builder.py describes it.

        Raises:
            SettingsError: `as_of` is not an aware ISO 8601 time, or lies in the future.

        """
        form = document["form"]
        wanted_moment = None
        if form.get("as_of"):
            wanted_moment = parse_timestamp(form["as_of"], "parameter as_of")
        elif document["backfilled"]:
            backfilled = datetime.fromisoformat(document["backfilled"])
            wanted_moment = backfilled.astimezone(UTC)
        return cls(
            dag=document["dag"],
            run_id=document["run_id"],
            actor=f"airflow:{document['actor']}",
            start=datetime.fromisoformat(document["start"]).astimezone(UTC),
            wanted_moment=wanted_moment,
            form=form,
        )

    @property
    def key(self) -> str:
        """Name of the run in MLflow's tags."""
        return f"{self.dag}/{self.run_id}"

    @property
    def as_of(self) -> datetime:
        return self.wanted_moment or self.start

    def inputs(self) -> tuple[Settings, ModelSpec]:
        """Return the settings and the spec of the DAG's model."""
        return load_settings(), load_spec(self.dag.partition("_")[2])


def note(run: Run, text: str, mlflow_run: str | None = None) -> None:
    """Show a text on the run in Airflow, with a link to its MLflow run.

    If Airflow does not answer, a warning is logged and the run goes on.
    """
    from mlflow_server.api.pages import CARD, Pages  # noqa: PLC0415

    log.info("%s", text)
    settings = load_settings()
    link = ""
    try:
        if mlflow_run:
            run_page = Pages(settings).run(mlflow_run)
            link = f"[MLflow run, model card]({run_page}/artifacts/{CARD})"
        with AirflowApi(settings) as airflow:
            airflow.note(run.dag, run.run_id, text, link)
    except GyreError as exc:
        log.warning("the note is not shown: %s", exc)


def put_into_production(
    run: Run, mlflow_run: str, version: str, *, who: str = "", comment: str = ""
) -> str:
    """Promote a version or begin its rollout; return the outcome, which is the run's note.

    Args:
        run: The run of the running task.
        mlflow_run: The run that trained it.
        version: The version.
        who: The user of Airflow who approved it; "": the one who started the training.
        comment: A remark of that user.

    """
    from mlflow_server.api.tracking import Tracking  # noqa: PLC0415  (heavy)
    from training.stages.register import promote_challenger  # noqa: PLC0415

    settings, spec = run.inputs()
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
    note(run, outcome, mlflow_run)
    return outcome


def alert(event: Mapping[str, Any]) -> None:
    """Alert that a task failed in its last try, once while it goes on failing."""
    from mlflow_server.alerts import Alerts  # noqa: PLC0415  (0.5 s, and seldom)

    killed = "its process was killed, or got no time to run: gyre logs scheduler"
    with Alerts(load_settings()) as alerts:
        alerts.alert_failure(
            event["subject"],
            f"{event['dag']}.{event['task']}",
            event["problem"] or killed,
            datetime.now(UTC),
        )


def end_alerts(event: Mapping[str, Any]) -> None:
    """End the alerts about failed tasks of a DAG, as a later run has done their work."""
    from mlflow_server.alerts import Alerts  # noqa: PLC0415  (0.5 s)

    with Alerts(load_settings()) as alerts:
        alerts.end_failures(event["dag"])
