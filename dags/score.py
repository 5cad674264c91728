"""`score_<MODEL>`: every night the version in production scores the population, or rows of a table.

The scores are a Delta table (training/batch.py), and go to the table of `[scores]` too. A second run
of a day replaces the first.
"""

from core.errors import NoChampionError, NoRequestError
from core.spec import ModelSpec
from core.spec.tables import Scores
from dags.plan import DagPlan, TaskPlan, model_plan
from dags.run import Run, SkippedError, note
from stack.airflow_api import WRITE_POOL

NIGHTLY = "15 0 * * *"
"""A quarter of an hour after the ingest of midnight, which completes the day."""


def plan(spec: ModelSpec) -> DagPlan | None:
    if spec.population is None and spec.scores == Scores():
        return None  # it answers requests alone
    task = TaskPlan(
        "score", "Score the population", step="score:score", pool=WRITE_POOL
    )
    return model_plan("score", spec, __doc__, [task], cron=NIGHTLY)


def score(run: Run) -> str:
    """Score the population, with the report as the run's note; skip if there is no version to ask."""
    from training.batch import score_population  # noqa: PLC0415  (heavy)

    try:
        report = score_population(*run.inputs(), run.as_of)
    except (NoChampionError, NoRequestError) as exc:
        raise SkippedError(str(exc)) from exc
    note(run, report.summary())
    return report.summary()
