"""The task that asks a person, in Airflow's own "required actions"; it needs no triggerer."""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param

from core.settings import load_settings
from core.spec import ModelSpec, load_spec
from dags.run import note

FORM = {
    "comment": Param("", type="string", description="Why; it is kept with the outcome.")
}
"""What the task takes as its `params`."""


class Approval(ApprovalOperator):
    """Waits as long as the spec says; rejected or unanswered, what follows is skipped.

    Either ends green, with the outcome as note and in MLflow. `answered` reads its result.
    """

    template_fields = (*ApprovalOperator.template_fields, "mlflow_run", "version")

    def __init__(
        self, *, spec: ModelSpec, mlflow_run: Any, version: Any, **more: Any
    ) -> None:
        super().__init__(
            subject=f"Put a version of {spec.name} into production?",
            defaults=self.REJECT,
            response_timeout=timedelta(hours=spec.promotion.wait_hours),
            **more,
        )
        self.model, self.mlflow_run, self.version = spec.name, mlflow_run, version

    def execute(self, context: Any) -> None:
        from training.register import ask, settled  # noqa: PLC0415  (heavy)

        settings, spec = load_settings(), load_spec(self.model)
        if settled(settings, spec, self.mlflow_run, self.version):
            return  # nothing to ask: `promote` says what became of it
        self.subject, self.body = ask(settings, spec, self.mlflow_run, self.version)
        note(settings, f"waits for approval: {self.subject}")
        super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        if event.get("chosen_options") == [self.REJECT]:
            from training.register import not_approved  # noqa: PLC0415  (heavy)

            settings, hours = (
                load_settings(),
                load_spec(self.model).promotion.wait_hours,
            )
            who, comment = answered(event)
            why = f"rejected by {who}" if who else f"nobody answered within {hours:g} h"
            why += f": {comment}" if comment else ""
            note(settings, not_approved(settings, self.mlflow_run, self.version, why))
        return super().execute_complete(context, event)


def answered(event: dict[str, Any]) -> tuple[str | None, str]:
    """Return who answered (None: nobody did in time) and the comment."""
    user = event["responded_by_user"]
    return user and user["name"], str(
        (event["params_input"] or {}).get("comment") or ""
    )
