"""`approve_<MODEL>`: a person puts a version into production, or leaves it where it is.

Specs with `approval = true` of `[promotion]` have it. `train_<MODEL>` starts a run for each version
that passed the gates; a run by hand asks again about a training, by its MLflow run. The question
stands among Airflow's required actions, and an alert says so. Questions wait side by side and hold up
no training. An answer, or none in time, ends the run green, with the outcome as its note and in MLflow.
"""

from datetime import UTC, datetime, timedelta

from core.settings import Settings
from core.spec import ModelSpec
from dags.plan import DagPlan, TaskPlan, model_plan
from dags.run import Run, note, put_into_production
from stack.airflow_api import promotion_asset

QUESTIONS = 16
"""Questions about a model that wait at once; further ones are asked after these."""
QUESTION_FORM = {
    "mlflow_run": {
        "type": "string",
        "description": "Id of the MLflow run that trained the version.",
    }
}
ANSWER = "{{ (ti.xcom_pull('approval') or {}).get('%s', '') }}"
"""Template of a part of the answer; there is none where nothing was to be asked."""


def plan(spec: ModelSpec) -> DagPlan | None:
    if not spec.promotion.approval:
        return None
    tasks = [
        TaskPlan(
            "approval",
            "Ask for approval",
            kind="approval",
            arguments={"wait_hours": spec.promotion.wait_hours},
        ),
        TaskPlan(
            "promote",
            "Promote",
            step="approve:promote",
            arguments={"who": ANSWER % "who", "comment": ANSWER % "comment"},
            asset=promotion_asset(spec),
        ),
    ]
    return model_plan(
        "approve", spec, __doc__, tasks, form=QUESTION_FORM, most_runs=QUESTIONS
    )


def ask(run: Run) -> tuple[str, str] | None:
    """Alert that a question waits, and return its subject and body; None if it has its answer."""
    from mlflow_server.alerts import Alerts, cause_of_question  # noqa: PLC0415
    from training.stages.register import ask as question_of  # noqa: PLC0415  (heavy)
    from training.stages.register import settled  # noqa: PLC0415

    candidate = _candidate(run)
    if settled(*candidate):
        return None  # `promote` notes the outcome
    subject, body = question_of(*candidate)
    note(run, f"waits for approval: {subject}")
    settings, spec, _, version = candidate
    now = datetime.now(UTC)
    until = now + timedelta(hours=spec.promotion.wait_hours)
    page = f"{settings.link('airflow')}/dags/{run.dag}/runs/{run.run_id}/tasks/approval"
    message = (
        f"{subject} Answer until {until:%Y-%m-%d %H:%M} UTC: {page}/required_actions"
    )
    cause = cause_of_question(version)
    with Alerts(settings) as alerts:
        # An alert of a question that was deleted in Airflow would keep this one from being sent.
        alerts.end(spec.name, cause)
        alerts.note(spec.name, cause, message, now, until=until)
        alerts.deliver(spec.name, now)
    return subject, body


def conclude(run: Run, *, is_approved: bool, who: str, comment: str) -> None:
    """End the alert; if the version is not approved, note the reason."""
    from mlflow_server.alerts import Alerts, cause_of_question  # noqa: PLC0415
    from training.stages.register import not_approved  # noqa: PLC0415  (heavy)

    candidate = _candidate(run)
    settings, spec, _, version = candidate
    with Alerts(settings) as alerts:
        alerts.end(spec.name, cause_of_question(version))
    if not is_approved:
        hours = spec.promotion.wait_hours
        reason = f"rejected by {who}" if who else f"nobody answered within {hours:g} h"
        if comment:
            reason = f"{reason}: {comment}"
        note(run, not_approved(*candidate, reason))


def _candidate(run: Run) -> tuple[Settings, ModelSpec, str, str]:
    """Return settings, spec, the MLflow run of the form, and the version that it trained."""
    from training.stages.register import version_of  # noqa: PLC0415  (heavy)

    settings, spec = run.inputs()
    mlflow_run = run.form["mlflow_run"]
    return settings, spec, mlflow_run, version_of(settings, spec, mlflow_run)


def promote(run: Run, who: str, comment: str) -> str:
    """Promote the version or begin its rollout, in the name of the user who approved it."""
    *_, mlflow_run, version = _candidate(run)
    return put_into_production(run, mlflow_run, version, who=who, comment=comment)
