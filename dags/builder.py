"""Makes DAGs of Airflow out of plans (dags/plan.py), as dictionaries.

Only Airflow, from 3.0 on, and the standard library are imported: `gyre dags` prints this file too, for
an Airflow whose environment has no Gyre.
"""

import json
import logging
import os
import subprocess
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.python import (
    PythonOperator,
    ShortCircuitOperator,
)
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Asset, BaseOperator, Param, chain, get_current_context

try:
    from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable
    from airflow.sdk.exceptions import AirflowException, AirflowSkipException
except ImportError:  # Airflow 3.0
    from airflow.exceptions import (  # type: ignore[attr-defined, no-redef]
        AirflowException,
        AirflowSkipException,
    )
    from airflow.timetables.assets import AssetOrTimeSchedule  # type: ignore[assignment]
    from airflow.timetables.trigger import CronTriggerTimetable  # type: ignore[assignment]
try:
    from airflow.providers.standard.operators.hitl import ApprovalOperator
except (ImportError, AirflowException):  # Airflow 3.0 cannot ask a person
    ApprovalOperator = BaseOperator  # type: ignore[misc, assignment]

CAN_ASK = ApprovalOperator is not BaseOperator
"""Whether this Airflow can ask a person."""
MISLEADING = ("PYTHONPATH", "PYTHONHOME", "REDIS_URL")
"""Variables of Airflow's own environment that a command of Gyre does not inherit."""
ANSWER_FORM = {
    "comment": {
        "default": "",
        "type": "string",
        "description": "Why; it is kept with the outcome.",
    }
}
log = logging.getLogger(__name__)
Document = Mapping[str, Any]
RunStep = Callable[[Document], Document]
"""Runs a step. The request has `step`, `arguments`, and of a task `run`, of a run's first one `plan`;
the answer has `result` or `skipped`."""


def build_dags(plans: list[dict[str, Any]], run_step: RunStep) -> None:
    """Build the DAG of each plan, but those that ask a person where Airflow cannot."""
    for plan in plans:
        if CAN_ASK or plan["tasks"][0]["kind"] != "approval":
            _build_dag(plan, run_step)


def _build_dag(plan: Document, run_step: RunStep) -> None:
    kind, _, model = plan["name"].partition("_")
    first_line = plan["doc"].partition("\n")[0]
    on_failure = partial(report, run_step, plan["on_failure"], "")
    with DAG(
        plan["name"],
        dag_display_name=f"{kind.title()} {model}".strip(),
        description=first_line.partition(": ")[2],
        doc_md=plan["doc"],
        schedule=_schedule(plan["cron"], plan["asset"]),
        catchup=False,
        tags=["gyre", plan["subject"]],
        params=_form(plan["form"]),
        on_failure_callback=on_failure if plan["on_failure"] else None,
        on_success_callback=partial(report, run_step, "run:end_alerts", ""),
        max_active_runs=plan["most_runs"],
        owner_links=plan["links"],
    ):
        tasks = [_task(task, plan, run_step) for task in plan["tasks"]]
        if plan["is_chain"]:
            chain(*tasks)


def _form(fields: Mapping[str, Document]) -> dict[str, Param]:
    return {name: Param(**field) for name, field in fields.items()}


def _schedule(cron: str, asset: str) -> Any:
    """Return a schedule by `cron` (UTC) and, beside it, by events of the Asset named `asset`.

    An event is a signal, never data: events that come while a run is active start one run after
    it, and a DAG that is paused has none. A run reads its causes when it starts.
    """
    if not cron:
        return None
    if not asset:
        return CronTriggerTimetable(cron, timezone="UTC")
    # By default Airflow makes up for a run that was due up to a tenth of the period before the DAG
    # came: a weekly model that is added on a Sunday would be trained at once. The scheduler may take
    # a minute.
    timetable = CronTriggerTimetable(
        cron, timezone="UTC", run_immediately=timedelta(minutes=1)
    )
    return AssetOrTimeSchedule(timetable=timetable, assets=Asset(asset))


def _task(task: Document, plan: Document, run_step: RunStep) -> Any:
    """Return a task of Airflow; the first one of a DAG compares its plan with that of today."""
    sent_plan = plan if task is plan["tasks"][0] else None
    subject = task["subject"] or plan["subject"]
    options = {
        "task_id": task["name"],
        "task_display_name": task["title"],
        "owner": "gyre",
        "retries": 1,
        "retry_delay": timedelta(seconds=3),
        "execution_timeout": timedelta(minutes=30),
        "on_failure_callback": partial(report, run_step, "run:alert", subject),
        "outlets": [Asset(task["asset"])] if task["asset"] else [],
        "pool": task["pool"],
    }
    return _operator(task, partial(_ask_for_step, run_step, sent_plan), options)


def _operator(task: Document, ask: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return the operator of a task's kind.

    Args:
        task: Its plan.
        ask: Runs a step, of its name and its arguments.
        options: Arguments of every operator.

    """
    if task["kind"] == "signal":
        return EmptyOperator(**options)
    if task["kind"] == "approval":
        return Approval(
            ask=ask,
            subject="Put a version into production?",
            defaults="Reject",
            params=_form(ANSWER_FORM),
            response_timeout=timedelta(hours=task["arguments"]["wait_hours"]),
            **options,
        )
    if task["kind"] == "question" and CAN_ASK:
        mlflow_run = task["arguments"]["mlflow_run"]
        return TriggerDagRunOperator(
            trigger_dag_id=task["asks"],
            conf={"mlflow_run": mlflow_run},
            # A second try after a kill asks no second time.
            trigger_run_id=mlflow_run,
            skip_when_already_exists=True,
            **options,
        )
    operator = ShortCircuitOperator if task["kind"] == "gate" else PythonOperator
    return operator(
        python_callable=partial(ask, task["step"]),
        op_kwargs={"arguments": task["arguments"]},
        **options,
    )


def _ask_for_step(
    run_step: RunStep, plan: Document | None, step: str, arguments: Document
) -> Any:
    """Return the result of a step of the running task.

    Raises:
        AirflowSkipException: There is nothing to do.

    """
    context: Any = get_current_context()
    request = {
        "step": step,
        "arguments": arguments,
        "run": run_of(context),
        "plan": plan,
    }
    answer = run_step(request)
    if "skipped" in answer:
        raise AirflowSkipException(answer["skipped"])
    return answer["result"]


def run_of(context: Any) -> dict[str, Any]:
    """Return the run of the running task as JSON: start, who started it, and what was asked for."""
    dag_run = context["dag_run"]
    run_type = dag_run.run_type.value
    is_backfill = run_type == "backfill"
    user = getattr(dag_run, "triggering_user_name", None)  # not in Airflow 3.0
    return {
        "dag": dag_run.dag_id,
        "run_id": dag_run.run_id,
        "actor": user or run_type,
        "start": dag_run.start_date.isoformat(),
        "backfilled": dag_run.logical_date.isoformat() if is_backfill else None,
        "form": dict(context["params"]),
    }


def report(run_step: RunStep, step: str, subject: str, context: Any) -> None:
    """Run a step about a task, or a run, that has ended; Airflow calls it.

    Args:
        run_step: Runs the step.
        step: The step, which gets the event.
        subject: Name in an alert about a task.
        context: Airflow's. It has no exception if Airflow ended the process itself.

    """
    error = context.get("exception")
    task = context.get("task")
    event = {
        "subject": subject,
        "dag": context["dag"].dag_id,
        "run_id": context["run_id"],
        "task": task.task_id if task else None,
        "problem": f"{type(error).__name__}: {error}" if error else "",
    }
    run_step({"step": step, "arguments": {"event": event}})


class Approval(ApprovalOperator):
    """Waits for an answer, which is its result; a rejection or no answer in time skips the rest."""

    def __init__(self, *, ask: Callable[..., Any], **options: Any) -> None:
        super().__init__(**options)
        self.ask = ask

    def execute(self, context: Any) -> None:
        question = self.ask("approve:ask", {})
        if question:
            self.subject, self.body = question
            super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> dict[str, str]:
        user = event["responded_by_user"]
        form = event["params_input"] or {}
        answer = {
            "who": user["name"] if user else "",  # nobody, in time
            "comment": str(form.get("comment") or ""),
        }
        is_approved = event.get("chosen_options") != ["Reject"]
        try:
            self.ask("approve:conclude", answer | {"is_approved": is_approved})
        except Exception as exc:  # noqa: BLE001  (a failed task would ask again)
            log.warning("the answer counts, and is not noted everywhere: %s", exc)
        super().execute_complete(context, event)
        return answer


def run_by_command(
    command: str, environment: Mapping[str, str], request: Document
) -> Document:
    """Run a step in an environment of its own; its log goes to that of the task.

    Args:
        command: Path of the `gyre` command.
        environment: Variables that it gets beside Airflow's own.
        request: The step, as RunStep has it.

    Raises:
        RuntimeError: The step failed; the message is Gyre's.

    """
    inherited = {
        name: value for name, value in os.environ.items() if name not in MISLEADING
    }
    with TemporaryDirectory() as folder:
        file = Path(folder) / "answer.json"
        done = subprocess.run(
            [command, "step", str(file)],
            input=json.dumps(request),
            env={**inherited, **environment},
            text=True,
            check=False,
        )
        if not file.exists():
            raise RuntimeError(
                f"{command} step ended with exit code {done.returncode} and no answer: "
                "see the log above"
            )
        answer: Document = json.loads(file.read_text())
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer
