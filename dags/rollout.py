"""`rollout_<MODEL>`: the rollout of a version, a step at a time.

For specs with `[rollout] policy = "canary"`. A run judges one step
(monitoring/trials/rollout.py): every five minutes, by hand, and on the Asset `rollout/<MODEL>`,
when `train_<MODEL>` has put a version into role shadow. The promotion ledger holds the state: while
it has no version in a rollout, a run is skipped. A version that goes into production emits the Asset
`promoted/<MODEL>`.
"""

from core.additions import is_present
from core.settings import Settings
from core.spec import ModelSpec
from dags.plan import DagPlan, TaskPlan, model_plan
from dags.run import Run, SkippedError, note


def plan(spec: ModelSpec) -> DagPlan | None:
    if spec.rollout.policy != "canary" or not is_present("monitoring.trials"):
        return None
    tasks = [
        TaskPlan("look", "Judge the step", step="rollout:look", kind="gate"),
        TaskPlan(
            "promoted",
            "Signal the promotion",
            kind="signal",
            asset=f"promoted/{spec.name}",
        ),
    ]
    return model_plan(
        "rollout",
        spec,
        __doc__,
        tasks,
        cron="*/5 * * * *",
        asset=f"rollout/{spec.name}",
    )


def look(run: Run) -> bool:
    """Return whether the version went into production; the report's summary is the run's note."""
    settings, spec = run.inputs()
    if _is_idle(settings, spec.name):
        raise SkippedError("no rollout is in progress")
    from monitoring.trials.rollout import roll_out  # noqa: PLC0415  (heavy)

    report = roll_out(settings, spec, run.as_of)
    note(run, report.summary)
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
