"""A small DAG that says on a schedule that something is due.

Airflow cannot join cron and partitioned assets in one DAG, and unpartitioned events are lost when
they come at once: so a DAG that starts both by the clock and by what happened listens to an Asset
that such a tick emits.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, CronTriggerTimetable, task

from dags.run import current, task_defaults


def tick_dag(name: str, starts: str, due: str, model: str, schedule: str) -> None:
    """Build `<name>_<model>`, which emits the Asset `<due>/<model>`; that starts another DAG."""
    asset = Asset(f"{due}/{model}")
    # False would still run what was due up to a tenth of the period before the DAG came: a weekly
    # model that is added on a Sunday would be trained at once. A minute is what the scheduler may
    # take: where the DAG is read again meanwhile, its first run is not lost.
    timetable = CronTriggerTimetable(schedule, timezone="UTC", run_immediately=timedelta(minutes=1))
    with DAG(
        dag_id=f"{name}_{model}",
        doc_md=f"Starts `{starts}_{model}` on the schedule {schedule}.",
        schedule=timetable,
        catchup=False,
        tags=["gyre", model],
        default_args=task_defaults(model),
    ):

        @task(outlets=[asset])
        def emit(*, outlet_events: Any = None) -> None:
            _, cause = current()
            moment = cause.as_of.isoformat()
            outlet_events[asset].extra = {"as_of": moment, "reason": f"schedule {schedule}"}
            outlet_events[asset].add_partitions(f"schedule {moment}")

        emit()
