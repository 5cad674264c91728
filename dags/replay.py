"""`replay_<MODEL>`: the loop at one moment of the past; only in a home made by `gyre replay`.

Its runs are those of an Airflow backfill, in order, each as of its logical date: what was due is
ingested, the population scored, the version in production looked at, and retrained where that is
decided or labels have matured, as by the spec's schedule. The functions are those of the other
DAGs, which are paused in such a home: they would act as of today. Nobody is there to approve a
version, nor to ask for a rollout to be judged by: a version that passes its gates goes into
production.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import DAG, get_current_context, task

from dags.run import WRITERS, current, for_each_model, note, task_defaults
from stack.settings import load_settings
from stack.spec import ModelSpec, Promotion, Rollout, load_spec

if TYPE_CHECKING:
    from datetime import date

TWICE_A_MONTH = "0 0 1,15 * *"
WHO = "airflow:backfill"
"""Not who asked for it: nobody answers an escalation here (monitoring/past.py)."""
FIRST, MATURED = "the first version", "labels have matured"


def replay_dag(last: date, spec: ModelSpec) -> None:
    """Build the DAG; after the day `last` nothing of it is scheduled."""
    with DAG(
        dag_id=f"replay_{spec.name}",
        doc_md=__doc__,
        schedule=TWICE_A_MONTH,
        end_date=datetime.combine(last, time(), UTC),
        catchup=False,
        max_active_runs=1,
        is_paused_upon_creation=False,
        tags=["gyre", spec.name],
        default_args=task_defaults(spec.name),
    ):
        looked: Any = look(spec.name)
        looked >> retrain(spec.name)


@task.short_circuit(pool=WRITERS)
def look(model: str) -> bool:
    """Ingest, score, monitor; go on if a retraining was decided, or is due or first possible.

    One task and not three: what they import takes longer than what they do.
    """
    from feature_repo.ingest import ingest  # noqa: PLC0415  (heavy)
    from mlflow_server.registry import Registry  # noqa: PLC0415
    from monitoring.monitor import monitor  # noqa: PLC0415
    from stack.errors import TrainingError  # noqa: PLC0415
    from training.batch import score_population  # noqa: PLC0415
    from training.validate import learnable, newest_snapshot  # noqa: PLC0415

    (settings, cause), spec = current(), load_spec(model)
    log, context = logging.getLogger(__name__), cast("Any", get_current_context())
    log.info(ingest(settings, spec.dataset, cause.as_of).summary())
    said, why, reason = FIRST, None, FIRST
    if Registry(settings).production(model) is None:
        try:
            newest_snapshot(settings, spec, cause.as_of)
            action = "retrain"
        except TrainingError as exc:
            action, said = "nothing", f"nothing is in production yet: {exc}"
    else:
        log.info(score_population(settings, spec, cause.as_of).summary())
        report = monitor(settings, spec, cause.as_of)
        action, said = report.decision.action, report.summary()
        if action == "retrain":
            why, reason = report.cause, report.retraining_reason()
        elif learnable(settings, spec, cause.as_of):
            action, reason = "retrain", MATURED
    for key, value in {"said": said, "cause": why, "reason": reason}.items():
        context["ti"].xcom_push(key, value)
    note(settings, said)
    return action == "retrain"


@task
def retrain(model: str) -> str:
    """Run the chain of `train_<MODEL>` in this process: six imports of everything less."""
    from stack.errors import TrainingError  # noqa: PLC0415  (heavy)
    from training.chain import train  # noqa: PLC0415

    settings, cause = current()
    context: Any = get_current_context()
    said, why, reason = (
        context["ti"].xcom_pull("look", key=key) for key in ("said", "cause", "reason")
    )
    straight = {"promotion": Promotion(), "rollout": Rollout()}
    spec = load_spec(model).model_copy(update=straight)
    try:
        outcome = train(
            settings, spec, cause.as_of, key=cause.key, reason=reason, who=WHO, cause=why
        ).outcome
    except TrainingError as exc:  # its run in MLflow has failed; history goes on
        outcome = f"not trained: {exc}"
    note(settings, f"{said} → {outcome}")
    return outcome


if (_last := load_settings().replay) is not None:
    for_each_model(partial(replay_dag, _last))
