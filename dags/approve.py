"""`approve_<MODEL>`: a person puts a version into production, or leaves it where it is.

Specs with `approval = true` of `[promotion]` have it. `train_<MODEL>` starts a run for each version
that passed the gates; a run by hand asks again about a training, by its MLflow run. The question
stands among Airflow's required actions, and an alert says so. Questions wait side by side and hold up
no training.
"""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Asset, Param, get_current_context, task

from core.errors import GyreError
from core.settings import Settings
from core.spec import ModelSpec
from dags.run import (
    current_run,
    for_each_model,
    model_dag,
    note,
    put_into_production,
    task_inputs,
)
from stack.airflow_api import promotion_asset

log = logging.getLogger(__name__)
QUESTIONS = 16
"""Questions about a model that wait at once; further ones are asked after these."""
QUESTION_FORM = {
    "mlflow_run": Param(
        type="string", description="Id of the MLflow run that trained the version."
    )
}
ANSWER_FORM = {
    "comment": Param("", type="string", description="Why; it is kept with the outcome.")
}
"""Fields of the answer; Airflow takes them as the task's `params`."""


def approve_dag(spec: ModelSpec) -> None:
    if not spec.promotion.approval:
        return
    dag = model_dag(
        "approve",
        spec,
        __doc__,
        None,
        params=QUESTION_FORM,
        max_active_runs=QUESTIONS,
    )
    with dag:
        question = Approval(
            task_id="approval",
            task_display_name="Ask for approval",
            subject=f"Put a version of {spec.name} into production?",
            defaults=Approval.REJECT,
            response_timeout=timedelta(hours=spec.promotion.wait_hours),
            params=ANSWER_FORM,
        )
        signal = promote.override(outlets=[Asset(promotion_asset(spec))])
        question >> signal()


class Approval(ApprovalOperator):
    """Waits for an answer as long as the spec says; a rejection or no answer skips `promote`.

    The run ends green in each case, with the outcome as its note and in MLflow. `answer_of` reads the
    result.
    """

    def execute(self, context: Any) -> None:
        """Ask, and alert that a question waits, with a link to it."""
        from mlflow_server.alerts import Alerts, cause_of_question  # noqa: PLC0415
        from training.stages.register import ask, settled  # noqa: PLC0415  (heavy)

        candidate = _candidate()
        if settled(*candidate):
            return  # nothing to ask: `promote` notes the outcome
        self.subject, self.body = ask(*candidate)
        note(f"waits for approval: {self.subject}")
        settings, spec, _, version = candidate
        now = datetime.now(UTC)
        until = now + timedelta(hours=spec.promotion.wait_hours)
        page = self.generate_link_to_ui_from_context(
            context=context, base_url=settings.link("airflow")
        )
        message = f"{self.subject} Answer until {until:%Y-%m-%d %H:%M} UTC: {page}"
        cause = cause_of_question(version)
        with Alerts(settings) as alerts:
            # An alert of a question that was deleted in Airflow would keep this one from being sent.
            alerts.end(spec.name, cause)
            alerts.note(spec.name, cause, message, now, until=until)
            alerts.deliver(spec.name, now)
        super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        try:
            self._conclude(event)
        except GyreError as exc:
            # A failed task would ask again though the answer counts.
            log.warning("the answer counts, and is not noted everywhere: %s", exc)
        return super().execute_complete(context, event)

    def _conclude(self, event: dict[str, Any]) -> None:
        """End the alert; if the version is not approved, note the reason."""
        from mlflow_server.alerts import Alerts, cause_of_question  # noqa: PLC0415
        from training.stages.register import not_approved  # noqa: PLC0415  (heavy)

        candidate = _candidate()
        settings, spec, _, version = candidate
        with Alerts(settings) as alerts:
            alerts.end(spec.name, cause_of_question(version))
        if event.get("chosen_options") == [self.REJECT]:
            name, comment = answer_of(event)
            hours = spec.promotion.wait_hours
            reason = (
                f"rejected by {name}" if name else f"nobody answered within {hours:g} h"
            )
            if comment:
                reason = f"{reason}: {comment}"
            note(not_approved(*candidate, reason))


def _candidate() -> tuple[Settings, ModelSpec, str, str]:
    """Return settings, spec, the MLflow run of the form, and the version that it trained."""
    from training.stages.register import version_of  # noqa: PLC0415  (heavy)

    settings, spec = task_inputs()
    mlflow_run = current_run().form["mlflow_run"]
    return settings, spec, mlflow_run, version_of(settings, spec, mlflow_run)


def answer_of(event: dict[str, Any]) -> tuple[str | None, str]:
    """Return the user who answered, None if nobody did in time, and the comment."""
    user = event["responded_by_user"]
    form = event["params_input"] or {}
    return user and user["name"], str(form.get("comment") or "")


@task(task_display_name="Promote")
def promote() -> str:
    """Promote the version or begin its rollout, in the name of the user who approved it."""
    context: Any = get_current_context()
    answer = context["ti"].xcom_pull("approval")
    who, comment = answer_of(answer) if answer else (None, "")
    *_, mlflow_run, version = _candidate()
    return put_into_production(mlflow_run, version, who=who, comment=comment)


for_each_model(approve_dag)
