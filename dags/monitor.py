"""`monitor_<MODEL>`: what serving logged becomes a verdict, and the verdict a decision.

It starts on `look/<MODEL>`, which the small DAG `hourly_<MODEL>` emits, on the Asset
`promoted/<MODEL>`, and by hand. A decision to retrain becomes the Asset event `drift/<MODEL>`, its
partition key the cause; without one `retrain` is skipped. Rolling back and alerting are done by
then: the run's note says so.
"""

from typing import Any

from airflow.sdk import Asset, get_current_context, task

from core.spec import ModelSpec, load_spec
from dags.run import current, for_each_model, model_dag, note, send, trigger_dag


def monitor_dag(spec: ModelSpec) -> None:
    trigger_dag("hourly", "monitor", "look", spec.name, "@hourly")
    with model_dag("monitor", spec, __doc__, ["look", "promoted"]):
        seen: Any = monitor(spec.name)
        seen >> retrain.override(outlets=[Asset(f"drift/{spec.name}")])(spec.name)


@task.short_circuit
def monitor(model: str) -> bool:
    """Go on if a retraining was decided, with the report's summary as the run's note."""
    from monitoring.monitor import monitor as look  # noqa: PLC0415  (heavy)

    settings, cause = current()
    report = look(settings, load_spec(model), cause.as_of)
    context: Any = get_current_context()
    context["ti"].xcom_push("cause", report.cause)
    context["ti"].xcom_push("reason", report.retraining_reason())
    note(settings, report.summary())
    return report.decision.action == "retrain"


@task
def retrain(model: str, *, outlet_events: Any = None) -> None:
    """Start `train_<MODEL>`, once per cause."""
    _, cause = current()
    context: Any = get_current_context()
    why, reason = (
        context["ti"].xcom_pull("monitor", key=key) for key in ("cause", "reason")
    )
    extra = {"as_of": cause.as_of.isoformat(), "reason": reason, "cause": why}
    send(outlet_events, f"drift/{model}", why, extra)


for_each_model(monitor_dag)
