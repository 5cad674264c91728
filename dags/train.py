"""`train_<MODEL>`: raw tables to a promoted version; one DAG for each file in models/.

It starts on the Asset `drift/<MODEL>` (one run for each partition key, the cause), by hand, or on
`due/<MODEL>`, which the small DAG `schedule_<MODEL>` emits on the spec's schedule. What a task does
is in training/, a file each; a task's result is an id, never data.
"""

from functools import partial
from pkgutil import resolve_name
from typing import Any

from airflow.sdk import Asset, task

from core.settings import load_settings
from core.spec import ModelSpec, load_spec
from dags.approval import FORM, Approval, answered
from dags.run import current, for_each_model, model_dag, note, send, trigger_dag

STAGES = {
    "dataset": "training.dataset:dataset",
    "train": "training.train:fit",
    "evaluate": "training.evaluate:evaluate",
    "register": "training.register:register",
}


def train_dag(spec: ModelSpec) -> None:
    trigger_dag("schedule", "train", "due", spec.name, spec.schedule)
    fails = {"on_failure_callback": partial(failed, spec.name)}
    with model_dag("train", spec, __doc__, ["drift", "due"], minutes=30, **fails):
        mlflow_run: Any = validate(spec.name)
        tasks: dict[str, Any] = {
            name: stage.override(task_id=name)(function, spec.name, mlflow_run)
            for name, function in STAGES.items()
        }
        passed, version = gate(spec.name, mlflow_run), tasks["register"]
        tasks["dataset"] >> tasks["train"] >> tasks["evaluate"] >> passed >> version
        approval: Any = None
        if spec.promotion.approval:
            asked = {"spec": spec, "mlflow_run": mlflow_run, "version": version}
            approval = Approval(task_id="approval", params=FORM, **asked).output
        put = promote.override(outlets=[Asset(told_after(spec))])
        put(spec.name, mlflow_run, version, approval)


def told_after(spec: ModelSpec) -> str:
    """Name the Asset of who looks next: of a canary `rollout_<MODEL>`; nothing is promoted yet."""
    return f"{'rollout' if spec.rollout.policy == 'canary' else 'promoted'}/{spec.name}"


def failed(model: str, context: Any) -> None:
    """Mark the MLflow run as failed once Airflow has given up: another may answer its cause."""
    from training.validate import fail_run  # noqa: PLC0415  (heavy)

    key = f"{context['dag'].dag_id}/{context['run_id']}"
    fail_run(load_settings(), load_spec(model), key)


@task
def stage(function: str, model: str, mlflow_run: str) -> Any:
    """Run one stage of training, imported here: each one's libraries cost seconds."""
    from mlflow_server.tracking import Tracking  # noqa: PLC0415  (heavy)

    settings = current()[0]
    with Tracking(settings).on_record(mlflow_run):
        return resolve_name(function)(settings, load_spec(model), mlflow_run)


@task.short_circuit
def validate(model: str) -> str | None:
    """Return the MLflow run to fill, or nothing (the rest is skipped): nothing new to learn."""
    from training.validate import NOTHING_NEW, open_run  # noqa: PLC0415  (heavy)

    settings, cause = current()
    origin: dict[str, Any] = {
        "key": cause.key,
        "reason": cause.reason,
        "who": cause.who,
    }
    mlflow_run = open_run(
        settings, load_spec(model), cause.as_of, **origin, cause=cause.event
    )
    if mlflow_run is None:
        answered = (
            f"; or a run answers it already: {cause.event}" if cause.event else ""
        )
        note(
            settings,
            f"{NOTHING_NEW} (as of {cause.as_of:%Y-%m-%d %H:%M} UTC){answered}",
        )
    return mlflow_run


@task.short_circuit
def gate(model: str, mlflow_run: str) -> bool:
    """Go on to `register`, or end green with the reason as the run's note."""
    from mlflow_server.tracking import Tracking  # noqa: PLC0415  (heavy)
    from training.gate import gate as judge  # noqa: PLC0415

    settings, _ = current()
    with Tracking(settings).on_record(mlflow_run):
        refusal = judge(settings, load_spec(model), mlflow_run)
    if refusal:
        note(settings, f"refused: {refusal}", mlflow_run)
    return refusal is None


@task
def promote(
    model: str,
    mlflow_run: str,
    version: str,
    approval: Any = None,
    *,
    outlet_events: Any = None,
) -> str:
    """Put the version into production or on its way; an approval's is in its giver's name."""
    from mlflow_server.tracking import Tracking  # noqa: PLC0415  (heavy)
    from training.register import promote as put_into_production  # noqa: PLC0415

    settings, cause = current()
    spec, who, reason = load_spec(model), cause.who, cause.reason
    if approval:
        name, comment = answered(approval)
        who, reason = f"airflow:{name}", f"{reason}; {comment}" if comment else reason
    with Tracking(settings).on_record(mlflow_run):
        origin = {"who": who, "reason": reason}
        outcome = put_into_production(settings, spec, mlflow_run, version, **origin)
    # Not "as_of": who looks at a version after its promotion looks at now.
    extra = {"version": version, "trained_as_of": cause.as_of.isoformat()}
    send(outlet_events, told_after(spec), f"version {version}", extra)
    note(settings, outcome, mlflow_run)
    return outcome


for_each_model(train_dag)
