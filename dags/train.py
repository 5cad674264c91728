"""`train_<MODEL>`: raw tables to a promoted version; one DAG for each file in models/.

It starts on the spec's schedule, by hand, and on the Asset `drift/<MODEL>`. When it starts it reads
the decisions to retrain that no run has answered, and takes its reason and its moment from them. The
stages are listed in training/stages/__init__.py, a file each; a task's result is an id, never data.
Where a person approves, it ends when `approve_<MODEL>` has begun to ask.
"""

from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Asset, Param, chain, task

from core.settings import load_settings
from core.spec import ModelSpec, load_spec
from dags.run import (
    FORM,
    clock_or_signal,
    current_run,
    for_each_model,
    model_dag,
    note,
    put_into_production,
    task_inputs,
)
from stack.airflow_api import promotion_asset
from training.stages import STAGES

MLFLOW_RUN = "{{ ti.xcom_pull('validate') }}"
VERSION = "{{ ti.xcom_pull('register') }}"
"""Templates: an argument that is a task's output would draw an edge to every task."""
TRAIN_FORM = FORM | {
    "reason": Param(None, type=["null", "string"], description="Why, for the ledger."),
    "force": Param(
        default=False, type="boolean", description="Also with nothing new to learn."
    ),
}


def train_dag(spec: ModelSpec) -> None:
    schedule = clock_or_signal(spec.schedule, f"drift/{spec.name}")
    dag = model_dag(
        "train",
        spec,
        __doc__,
        schedule,
        params=TRAIN_FORM,
        on_failure_callback=fail_mlflow_run,
    )
    with dag:
        steps: list[Any] = [validate()]
        for stage in STAGES:
            task_of_stage = run_gate if stage.is_gate else run_stage
            named_task = task_of_stage.override(
                task_id=stage.name, task_display_name=stage.title
            )
            steps.append(named_task(stage.name, MLFLOW_RUN))
        steps.append(_last_step(spec))
        chain(*steps)


def _last_step(spec: ModelSpec) -> Any:
    """Return the task that promotes, or has a person decide while other trainings run."""
    if spec.promotion.approval:
        return TriggerDagRunOperator(
            task_id="ask",
            task_display_name="Ask for approval",
            trigger_dag_id=f"approve_{spec.name}",
            conf={"mlflow_run": MLFLOW_RUN},
            # A second try after a kill asks no second time.
            trigger_run_id=MLFLOW_RUN,
            skip_when_already_exists=True,
        )
    signal = promote.override(outlets=[Asset(promotion_asset(spec))])
    return signal(MLFLOW_RUN, VERSION)


def fail_mlflow_run(context: Any) -> None:
    """Mark the MLflow run as failed after the last try, so that another run may answer its cause."""
    from training.runs import fail_run  # noqa: PLC0415  (heavy)

    dag_id = context["dag"].dag_id
    spec = load_spec(dag_id.partition("_")[2])
    fail_run(load_settings(), spec, f"{dag_id}/{context['run_id']}")


@task.short_circuit(task_display_name="Validate: anything new, and rows as expected?")
def validate() -> str | None:
    """Return the MLflow run of the training; None, which skips the rest, if nothing is new.

    Raw rows that break today's rules end the run.
    """
    from monitoring.decisions.causes import training_cause  # noqa: PLC0415  (heavy)
    from training.runs import NOTHING_NEW, open_run  # noqa: PLC0415

    settings, spec = task_inputs()
    run = current_run()
    cause = training_cause(settings, spec, run.start, run.wanted_moment)
    mlflow_run = open_run(
        settings,
        spec,
        cause.as_of,
        key=run.key,
        reason=run.form["reason"] or cause.reason or "started in Airflow",
        who=run.actor,
        cause=cause.name,
        force=run.form["force"],
    )
    if mlflow_run is None:
        note(f"{NOTHING_NEW} (as of {cause.as_of:%Y-%m-%d %H:%M} UTC)")
    return mlflow_run


@task
def run_stage(name: str, mlflow_run: str) -> Any:
    """Run one stage of training."""
    return _result_of(name, mlflow_run)


@task.short_circuit
def run_gate(name: str, mlflow_run: str) -> bool:
    """Return whether `register` follows; if not, the run ends green with the reason as its note."""
    refusal = _result_of(name, mlflow_run)
    if refusal:
        note(f"refused: {refusal}", mlflow_run)
    return refusal is None


def _result_of(name: str, mlflow_run: str) -> Any:
    from mlflow_server.api.tracking import Tracking  # noqa: PLC0415  (heavy)

    settings, spec = task_inputs()
    (stage,) = (stage for stage in STAGES if stage.name == name)
    with Tracking(settings).on_record(mlflow_run):
        return stage.run(settings, spec, mlflow_run)


@task(task_display_name="Promote")
def promote(mlflow_run: str, version: str) -> str:
    """Promote the version or begin its rollout."""
    return put_into_production(mlflow_run, version)


for_each_model(train_dag)
