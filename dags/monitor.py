"""`monitor_<MODEL>`: what serving logged becomes a verdict, and the verdict a decision.

It starts on `look/<MODEL>`, which the small DAG `hourly_<MODEL>` emits, on the Asset
`promoted/<MODEL>`, and by hand. What is seen and decided is in monitoring/; here a decision to
retrain becomes the Asset event `drift/<MODEL>`, its partition key the cause, which starts
`train_<MODEL>`. Rolling back and alerting are done by then: their tasks only show it.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Asset, PartitionedAssetTimetable, get_current_context, task

from dags.run import ONE_RUN, current, for_each_model, note, shown, task_defaults
from dags.tick import tick_dag
from stack.spec import ModelSpec, load_spec

HOURLY = "@hourly"
ENDS = {"retrain": "retrain", "rollback": "rolled_back", "alert": "alerted", "nothing": "nothing"}
"""The task that shows a decision's action."""


def monitor_dag(spec: ModelSpec) -> None:
    tick_dag("hourly", "monitor", "look", spec.name, HOURLY)
    with DAG(
        dag_id=f"monitor_{spec.name}",
        doc_md=__doc__,
        schedule=PartitionedAssetTimetable(
            assets=Asset(f"look/{spec.name}") | Asset(f"promoted/{spec.name}")
        ),
        **ONE_RUN,
        tags=["gyre", spec.name],
        default_args=task_defaults(spec.name),
    ):
        seen: Any = monitor(spec.name)
        seen >> retrain.override(outlets=[Asset(f"drift/{spec.name}")])(spec.name)
        seen >> shown(*(end for end in ENDS.values() if end != "retrain"))


@task.branch
def monitor(model: str) -> str:
    """Go on to what was decided, with the report's summary as the run's note."""
    from monitoring.monitor import monitor as look  # noqa: PLC0415  (heavy)

    settings, cause = current()
    report = look(settings, load_spec(model), cause.as_of)
    context: Any = get_current_context()
    context["ti"].xcom_push("cause", report.cause)
    context["ti"].xcom_push("reason", report.retraining_reason())
    note(settings, report.summary())
    return ENDS[report.decision.action]


@task
def retrain(model: str, *, outlet_events: Any = None) -> None:
    """Start `train_<MODEL>`, once per cause."""
    _, cause = current()
    context: Any = get_current_context()
    why, reason = (context["ti"].xcom_pull("monitor", key=key) for key in ("cause", "reason"))
    drift = Asset(f"drift/{model}")
    outlet_events[drift].extra = {
        "as_of": cause.as_of.isoformat(),
        "reason": reason,
        "cause": why,
    }
    outlet_events[drift].add_partitions(why)


for_each_model(monitor_dag)
