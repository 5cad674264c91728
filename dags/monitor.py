"""`monitor_<MODEL>`: serving's log becomes a verdict, and the verdict a decision.

It starts every hour, by hand, and on the Asset `promoted/<MODEL>`. While a decision to retrain has
no answer, `retrain` emits the Asset `drift/<MODEL>`; else it is skipped. A rollback and alerts are
done before, and the run's note names them.
"""

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import Asset, task

from core.spec import ModelSpec
from dags.run import (
    clock_or_signal,
    current_run,
    for_each_model,
    model_dag,
    note,
    task_inputs,
)


def monitor_dag(spec: ModelSpec) -> None:
    schedule = clock_or_signal("@hourly", f"promoted/{spec.name}")
    with model_dag("monitor", spec, __doc__, schedule):
        monitor() >> EmptyOperator(
            task_id="retrain",
            task_display_name="Signal a retraining",
            outlets=[Asset(f"drift/{spec.name}")],
        )


@task.short_circuit(task_display_name="Check and decide")
def monitor() -> bool:
    """Return whether a retraining is to start, with the report's summary as the run's note."""
    from monitoring.decisions.causes import moment_since_promotion, open_decisions  # noqa: PLC0415
    from monitoring.monitor import monitor as check  # noqa: PLC0415  (heavy)

    settings, spec = task_inputs()
    run = current_run()
    as_of = run.wanted_moment or moment_since_promotion(settings, spec.name, run.start)
    report = check(settings, spec, as_of)
    note(report.summary())
    return bool(open_decisions(settings, spec, as_of))


for_each_model(monitor_dag)
