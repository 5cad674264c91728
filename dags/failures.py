"""Alerts about tasks of Airflow that fail in their last try, in DAGs of a team.

Airflow applies the two policies to each DAG that it reads (pyproject.toml, `airflow.policy`). A task
or a DAG with a callback of its own, as Gyre's have, keeps that callback.
"""

from functools import partial
from typing import Any

from airflow.policies import hookimpl


@hookimpl
def task_policy(task: Any) -> None:
    """Make a task that fails alert about its DAG."""
    from dags.builder import report  # noqa: PLC0415  (Airflow is still being imported)
    from dags.steps import run_step  # noqa: PLC0415

    if not task.on_failure_callback:
        alert = partial(report, run_step, "run:alert", task.dag_id)
        task.on_failure_callback = [alert]


@hookimpl
def dag_policy(dag: Any) -> None:
    """Make a DAG that succeeds end the alerts about its tasks."""
    from dags.builder import report  # noqa: PLC0415
    from dags.steps import run_step  # noqa: PLC0415

    if not dag.on_success_callback:
        dag.on_success_callback = partial(report, run_step, "run:end_alerts", "")
        dag.has_on_success_callback = True
