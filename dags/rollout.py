"""`rollout_<MODEL>`: a version on its way into production, a step at a time.

For specs with `[rollout] policy = "canary"`. A run is one look (monitoring/canary.py): on the Asset
`rollout/<MODEL>`, when `train_<MODEL>` has put a version into role shadow, on `step/<MODEL>`, which
the small DAG `steps_<MODEL>` emits every five minutes, and by hand. The state is the promotion
ledger, not Airflow's: a run that is lost is made up for by the next one, and holding occupies no
worker. What went into production is told on the Asset `promoted/<MODEL>`, again at every look until
a monitor has looked at it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, get_current_context, task

from dags.run import ONE_RUN, current, for_each_model, note, shown, task_defaults
from dags.tick import tick_dag
from stack.spec import ModelSpec, load_spec

LOOKS = "*/5 * * * *"
ENDS = {"nothing": "nothing", "hold": "held", "advance": "advanced", "abort": "stopped",
        "done": "promoted"}  # fmt: skip
"""The task that shows what a look came to."""


def rollout_dag(spec: ModelSpec) -> None:
    if spec.rollout.policy != "canary":
        return
    tick_dag("steps", "rollout", "step", spec.name, LOOKS)
    with DAG(
        dag_id=f"rollout_{spec.name}",
        doc_md=__doc__,
        schedule=PartitionedAssetTimetable(
            assets=Asset(f"rollout/{spec.name}") | Asset(f"step/{spec.name}")
        ),
        **ONE_RUN,
        tags=["gyre", spec.name],
        default_args=task_defaults(spec.name, execution_timeout=timedelta(minutes=5)),
    ):
        seen: Any = look(spec.name)
        seen >> promoted.override(outlets=[Asset(f"promoted/{spec.name}")])(spec.name)
        seen >> shown(*(end for end in ENDS.values() if end != "promoted"))


@task.branch
def look(model: str) -> str:
    """Go on to what the look came to, with its summary as the run's note."""
    from monitoring.canary import look as judge  # noqa: PLC0415  (heavy)

    settings, cause = current()
    report = judge(settings, load_spec(model), cause.as_of)
    context: Any = get_current_context()
    context["ti"].xcom_push("version", report.version)
    note(settings, report.summary)
    return ENDS[report.action]


@task
def promoted(model: str, *, outlet_events: Any = None) -> None:
    """Have `monitor_<MODEL>` look at the version that is in production now."""
    context: Any = get_current_context()
    version, after = context["ti"].xcom_pull("look", key="version"), Asset(f"promoted/{model}")
    outlet_events[after].extra = {"version": version}
    outlet_events[after].add_partitions(f"version {version}")


for_each_model(rollout_dag)
