"""`train_<MODEL>`: raw tables to a promoted version; one DAG for each file in models/.

It starts on the spec's schedule, by hand, and on the Asset `drift/<MODEL>`. When it starts it reads
the decisions to retrain that no run has answered, and takes its reason and its moment from them. The
stages are listed in training/stages/__init__.py, a file each; a task's result is an id, never data.
Where a person approves, it ends when `approve_<MODEL>` has begun to ask.
"""

from collections.abc import Mapping
from typing import Any

from core.settings import load_settings
from core.spec import ModelSpec, load_spec
from dags.plan import FORM, DagPlan, TaskPlan, model_plan
from dags.run import Run, note
from stack.airflow_api import promotion_asset
from training.stages import STAGES

OF_RUN = {"mlflow_run": "{{ ti.xcom_pull('validate') }}"}
OF_VERSION = OF_RUN | {"version": "{{ ti.xcom_pull('register') }}"}
"""Templates: an argument that is a task's output would draw an edge to every task."""
TRAIN_FORM = FORM | {
    "reason": {
        "default": None,
        "type": ["null", "string"],
        "description": "Why, for the ledger.",
    },
    "force": {
        "default": False,
        "type": "boolean",
        "description": "Also with nothing new to learn.",
    },
}


def plan(spec: ModelSpec) -> DagPlan | None:
    if not spec.is_trained_here:
        return None  # its versions are adopted
    first = TaskPlan(
        "validate",
        "Validate: anything new, and rows as expected?",
        step="train:validate",
        kind="gate",
    )
    tasks = [first]
    for stage in STAGES:
        task = TaskPlan(
            stage.name,
            stage.title,
            step="train:run_gate" if stage.is_gate else "train:run_stage",
            kind="gate" if stage.is_gate else "step",
            arguments=OF_RUN | {"name": stage.name},
        )
        tasks.append(task)
    return model_plan(
        "train",
        spec,
        __doc__,
        [*tasks, _last_task(spec)],
        cron=spec.schedule,
        asset=f"drift/{spec.name}",
        form=TRAIN_FORM,
        on_failure="train:fail_mlflow_run",
    )


def _last_task(spec: ModelSpec) -> TaskPlan:
    """Return the task that promotes, or has a person decide while other trainings run."""
    if spec.promotion.approval:
        return TaskPlan(
            "ask",
            "Ask for approval",
            step="train:wait",
            kind="question",
            arguments=OF_VERSION,
            asks=f"approve_{spec.name}",
        )
    return TaskPlan(
        "promote",
        "Promote",
        step="run:put_into_production",
        arguments=OF_VERSION,
        asset=promotion_asset(spec),
    )


def fail_mlflow_run(event: Mapping[str, Any]) -> None:
    """Mark the MLflow run as failed after the last try, so that another run may answer its cause."""
    from training.runs import fail_run  # noqa: PLC0415  (heavy)

    dag = event["dag"]
    spec = load_spec(dag.partition("_")[2])
    fail_run(load_settings(), spec, f"{dag}/{event['run_id']}")


def validate(run: Run) -> str | None:
    """Return the MLflow run of the training; None, which skips the rest, if nothing is new.

    Raw rows that break today's rules end the run.
    """
    from monitoring.decisions.causes import training_cause  # noqa: PLC0415  (heavy)
    from training.runs import NOTHING_NEW, open_run  # noqa: PLC0415

    settings, spec = run.inputs()
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
        note(run, f"{NOTHING_NEW} (as of {cause.as_of:%Y-%m-%d %H:%M} UTC)")
    return mlflow_run


def run_stage(run: Run, name: str, mlflow_run: str) -> Any:
    """Run one stage of training."""
    from mlflow_server.api.tracking import Tracking  # noqa: PLC0415  (heavy)

    settings, spec = run.inputs()
    (stage,) = (stage for stage in STAGES if stage.name == name)
    with Tracking(settings).on_record(mlflow_run):
        return stage.run(settings, spec, mlflow_run)


def run_gate(run: Run, name: str, mlflow_run: str) -> bool:
    """Return whether `register` follows; if not, the run ends green with the reason as its note."""
    refusal = run_stage(run, name, mlflow_run)
    if refusal:
        note(run, f"refused: {refusal}", mlflow_run)
    return refusal is None


def wait(run: Run, mlflow_run: str, version: str) -> str:
    """Say how to approve the version in a shell, where Airflow can ask nobody."""
    from training.stages.register import wait_in_shell  # noqa: PLC0415  (heavy)

    outcome = wait_in_shell(*run.inputs(), mlflow_run, version)
    note(run, outcome, mlflow_run)
    return outcome
