"""Alerts about Airflow's tasks that fail after their last try, in every DAG.

Airflow applies the two policies to each DAG that it reads (pyproject.toml, `airflow.policy`). A task
or a DAG with a callback of its own keeps that.
"""

from datetime import UTC, datetime
from functools import partial
from typing import Any

from airflow.policies import hookimpl

from core.settings import load_settings


@hookimpl
def task_policy(task: Any) -> None:
    """Have a task alert about its DAG if it fails."""
    if not task.on_failure_callback:
        task.on_failure_callback = [partial(alert_of_failure, task.dag_id)]


@hookimpl
def dag_policy(dag: Any) -> None:
    """Have a DAG end the alerts about its tasks when it succeeds."""
    if not dag.on_success_callback:
        dag.on_success_callback = end_alerts
        dag.has_on_success_callback = True


def alert_of_failure(subject: str, context: Any) -> None:
    """Alert, once while it goes on, that a task failed for good.

    Airflow calls it after the last try; without an exception where it ended the process itself.
    """
    from mlflow_server.alerts import Alerts  # noqa: PLC0415  (0.5 s, and seldom)

    task_name = f"{context['dag'].dag_id}.{context['task'].task_id}"
    error = context.get("exception")
    problem = "its process was killed, or got no time to run: gyre logs scheduler"
    if error:
        problem = f"{type(error).__name__}: {error}"
    with Alerts(load_settings()) as alerts:
        alerts.alert_failure(subject, task_name, problem, datetime.now(UTC))


def end_alerts(context: Any) -> None:
    """End the alerts about failed tasks of a DAG: a later run has done their work."""
    from mlflow_server.alerts import Alerts  # noqa: PLC0415  (0.5 s)

    with Alerts(load_settings()) as alerts:
        alerts.end_failures(context["dag"].dag_id)
