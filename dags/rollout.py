"""`rollout_<MODEL>`: a version on its way into production, a step at a time.

For specs with `[rollout] policy = "canary"`. A run judges one step (monitoring/rollout.py): on the
Asset `rollout/<MODEL>`, when `train_<MODEL>` has put a version into role shadow, on `step/<MODEL>`,
which the small DAG `steps_<MODEL>` emits every five minutes, and by hand. The state is the
promotion ledger's. What went into production is emitted on the Asset `promoted/<MODEL>`.
"""

from typing import Any

from airflow.sdk import Asset, get_current_context, task

from core.spec import ModelSpec, load_spec
from dags.run import current, for_each_model, model_dag, note, send, trigger_dag


def rollout_dag(spec: ModelSpec) -> None:
    if spec.rollout.policy != "canary":
        return
    trigger_dag("steps", "rollout", "step", spec.name, "*/5 * * * *")
    with model_dag("rollout", spec, __doc__, ["rollout", "step"], minutes=5):
        seen: Any = look(spec.name)
        seen >> promoted.override(outlets=[Asset(f"promoted/{spec.name}")])(spec.name)


@task.short_circuit
def look(model: str) -> bool:
    """Go on if the version went into production, with the look's summary as the run's note."""
    from monitoring.rollout import roll_out  # noqa: PLC0415  (heavy)

    settings, cause = current()
    report = roll_out(settings, load_spec(model), cause.as_of)
    context: Any = get_current_context()
    context["ti"].xcom_push("version", report.version)
    note(settings, report.summary)
    return report.action == "done"


@task
def promoted(model: str, *, outlet_events: Any = None) -> None:
    """Have `monitor_<MODEL>` look at the version that is in production now."""
    context: Any = get_current_context()
    version = context["ti"].xcom_pull("look", key="version")
    send(outlet_events, f"promoted/{model}", f"version {version}", {"version": version})


for_each_model(rollout_dag)
