"""A program that reads the DAGs as Airflow does."""

import json
import os
import subprocess
import sys

READ = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction
free = TimeRestriction(earliest=None, latest=None, catchup=False)
bag = DagBag(sys.argv[1])
found = {
    "errors": {name: str(error) for name, error in bag.import_errors.items()},
    "modules": sorted(sys.modules),
    "dags": {},
}
for name, dag in bag.dags.items():
    serialized = DagSerialization.from_dict(DagSerialization.to_dict(dag)).timetable
    first = serialized.next_dagrun_info(last_automated_data_interval=None, restriction=free)
    asset = getattr(dag.timetable, "asset_condition", None)
    found["dags"][name] = {
        "tasks": {t.task_id: sorted(t.downstream_task_ids) for t in dag.tasks},
        "signals": {t.task_id: each.name for t in dag.tasks for each in t.outlets},
        "writers": [t.task_id for t in dag.tasks if t.pool == "tables"],
        "form": sorted(dag.params),
        "runs": [dag.start_date, dag.catchup, dag.max_active_runs],
        "schedule": DagSerialization.to_dict(dag)["dag"]["timetable"],
        "first_run": first and first.run_after.isoformat(),
        "starts_by": asset and asset.name,
        "longest": sum(((t.retries + 1) * t.execution_timeout).total_seconds()
                       for t in dag.tasks if t.execution_timeout),
        "on_failure": bool(dag.on_failure_callback),
        "alerts": [t.task_id for t in dag.tasks for callback in t.on_failure_callback
                   if callable(callback)] == [t.task_id for t in dag.tasks],
        "ends_alerts": DagSerialization.to_dict(dag)["dag"].get("has_on_success_callback"),
    }
print(json.dumps(found))
"""


def read(home, project):
    dags = str(project / "dags")
    env = os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": dags,
        "AIRFLOW__CORE__DEFAULT_TIMEZONE": "Asia/Kolkata",
        "PYTHONPATH": str(project),
        "GYRE_INGEST_SCHEDULE": "7-59/20 * * * *",
    }
    command = [sys.executable, "-c", READ, dags]
    output = subprocess.check_output(command, cwd=project, env=env)
    return json.loads(output.splitlines()[-1])
