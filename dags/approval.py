"""The task that asks a person, in Airflow's own "required actions"."""

from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param

from dags.run import note, task_inputs

APPROVAL_FORM = {
    "comment": Param("", type="string", description="Why; it is kept with the outcome.")
}
"""What a person fills in; Airflow takes it as the task's `params`."""


class Approval(ApprovalOperator):
    """Waits as long as the spec says; rejected or unanswered, what follows is skipped.

    Either ends green, with the outcome as note and in MLflow. `answer_of` reads its result.
    """

    def execute(self, context: Any) -> None:
        from training.register import ask, settled  # noqa: PLC0415  (heavy)

        candidate = (*task_inputs(), *_version(context))
        if settled(*candidate):
            return  # nothing to ask: `promote` says what became of it
        self.subject, self.body = ask(*candidate)
        note(f"waits for approval: {self.subject}")
        super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        if event.get("chosen_options") == [self.REJECT]:
            from training.register import not_approved  # noqa: PLC0415  (heavy)

            settings, spec = task_inputs()
            name, comment = answer_of(event)
            hours = spec.promotion.wait_hours
            reason = (
                f"rejected by {name}" if name else f"nobody answered within {hours:g} h"
            )
            if comment:
                reason = f"{reason}: {comment}"
            note(not_approved(settings, *_version(context), reason))
        return super().execute_complete(context, event)


def _version(context: Any) -> tuple[str, str]:
    """Return the MLflow run and the version that is asked about."""
    pull = context["ti"].xcom_pull
    return pull("validate"), pull("register")


def answer_of(event: dict[str, Any]) -> tuple[str | None, str]:
    """Return who answered (None: nobody did in time) and the comment."""
    user = event["responded_by_user"]
    form = event["params_input"] or {}
    return user and user["name"], str(form.get("comment") or "")
