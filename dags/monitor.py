"""`monitor_<MODEL>`: serving's log becomes a verdict, and the verdict a decision.

It starts every hour, by hand, and on the Asset `promoted/<MODEL>`. While a decision to retrain has
no answer, `retrain` emits the Asset `drift/<MODEL>`; else it is skipped. A rollback and alerts are
done before, and the run's note names them.
"""

from core.spec import ModelSpec
from dags.plan import DagPlan, TaskPlan, model_plan
from dags.run import Run, note


def plan(spec: ModelSpec) -> DagPlan:
    tasks = [
        TaskPlan("monitor", "Check and decide", step="monitor:monitor", kind="gate"),
        TaskPlan(
            "retrain",
            "Signal a retraining",
            kind="signal",
            asset=f"drift/{spec.name}",
        ),
    ]
    return model_plan(
        "monitor",
        spec,
        __doc__,
        tasks,
        cron="@hourly",
        asset=f"promoted/{spec.name}",
    )


def monitor(run: Run) -> bool:
    """Return whether a retraining is to start, with the report's summary as the run's note."""
    from monitoring.decisions.causes import moment_since_promotion, open_decisions  # noqa: PLC0415
    from monitoring.monitor import monitor as check  # noqa: PLC0415  (heavy)

    settings, spec = run.inputs()
    as_of = run.wanted_moment or moment_since_promotion(settings, spec.name, run.start)
    report = check(settings, spec, as_of)
    note(run, report.summary())
    return bool(open_decisions(settings, spec, as_of))
