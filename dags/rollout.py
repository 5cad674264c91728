"""`rollout_<MODEL>`: the rollout of a version, a step at a time.

For specs with `[rollout] policy = "canary"`. A run judges one step
(monitoring/trials/rollout.py): every five minutes, by hand, and on the Asset `rollout/<MODEL>`,
when `train_<MODEL>` has put a version into role shadow. The promotion ledger holds the state: while
it has no version in a rollout, a run is skipped. A version that goes into production emits the Asset
`promoted/<MODEL>`.
"""

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import Asset, task
from airflow.sdk.exceptions import AirflowSkipException

from core.additions import is_present
from core.settings import Settings
from core.spec import ModelSpec
from dags.run import (
    clock_or_signal,
    current_run,
    for_each_model,
    model_dag,
    note,
    task_inputs,
)


def rollout_dag(spec: ModelSpec) -> None:
    if spec.rollout.policy != "canary":
        return
    schedule = clock_or_signal("*/5 * * * *", f"rollout/{spec.name}")
    with model_dag("rollout", spec, __doc__, schedule):
        look() >> EmptyOperator(
            task_id="promoted",
            task_display_name="Signal the promotion",
            outlets=[Asset(f"promoted/{spec.name}")],
        )


@task.short_circuit(task_display_name="Judge the step")
def look() -> bool:
    """Return whether the version went into production; the report's summary is the run's note."""
    settings, spec = task_inputs()
    if _is_idle(settings, spec.name):
        raise AirflowSkipException("no rollout is in progress")
    from monitoring.trials.rollout import roll_out  # noqa: PLC0415  (heavy)

    report = roll_out(settings, spec, current_run().as_of)
    note(report.summary)
    return report.action == "done"


def _is_idle(settings: Settings, model: str) -> bool:
    """Whether the ledger has no version in a rollout, and nothing to finish."""
    from mlflow_server.promotion.ledger import Ledger  # noqa: PLC0415
    from mlflow_server.promotion.rules import current, of_newest_model  # noqa: PLC0415
    from mlflow_server.roles import CHALLENGER, SHADOW  # noqa: PLC0415

    with Ledger(settings) as ledger:
        rows = of_newest_model(ledger.rows(model))
    if rows and not rows[-1].applied_at:
        return False
    return not (current(rows, CHALLENGER) or current(rows, SHADOW))


if is_present("monitoring.trials"):
    for_each_model(rollout_dag)
