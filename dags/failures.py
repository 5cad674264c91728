"""Alerts about tasks of Airflow that fail in their last try, in every DAG.

Airflow applies the two policies to each DAG that it reads (pyproject.toml, `airflow.policy`). A task
or a DAG with a callback of its own keeps that callback.
"""

from datetime import UTC, datetime
from functools import partial
from typing import Any

from airflow.policies import hookimpl

from core.settings import load_settings


@hookimpl
def task_policy(task: Any) -> None:
    """Make a task that fails alert about its DAG."""
    if not task.on_failure_callback:
        task.on_failure_callback = [partial(alert_of_failure, task.dag_id)]


@hookimpl
def dag_policy(dag: Any) -> None:
    """Make a DAG that succeeds end the alerts about its tasks."""
    if not dag.on_success_callback:
        dag.on_success_callback = end_alerts
        dag.has_on_success_callback = True


def alert_of_failure(subject: str, context: Any) -> None:
    """Alert that a task failed in its last try, once while it goes on failing.

    Airflow calls it; the context has no exception if Airflow ended the process itself.
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
    """End the alerts about failed tasks of a DAG, as a later run has done their work."""
    from mlflow_server.alerts import Alerts  # noqa: PLC0415  (0.5 s)

    with Alerts(load_settings()) as alerts:
        alerts.end_failures(context["dag"].dag_id)
