"""`score_<MODEL>`: every night the version in production scores the whole population.

The scores are a Delta table (training/batch.py). A second run of a day replaces the first.
"""

from airflow.sdk import task
from airflow.sdk.exceptions import AirflowSkipException

from core.errors import NoChampionError, NoRequestError
from core.spec import ModelSpec
from dags.run import current_run, for_each_model, model_dag, note, task_inputs
from stack.airflow_api import WRITE_POOL

NIGHTLY = "15 0 * * *"
"""A quarter of an hour after the ingest of midnight, which completes the day."""


def score_dag(spec: ModelSpec) -> None:
    if spec.population is None:
        return  # the model has no population: it answers requests alone
    with model_dag("score", spec, __doc__, NIGHTLY):
        score()


@task(pool=WRITE_POOL, task_display_name="Score the population")
def score() -> str:
    """Score the population, with the report as the run's note; skip if there is no version to ask."""
    from training.batch import score_population  # noqa: PLC0415  (heavy)

    try:
        report = score_population(*task_inputs(), current_run().as_of)
    except (NoChampionError, NoRequestError) as exc:
        raise AirflowSkipException(str(exc)) from exc
    note(report.summary())
    return report.summary()


for_each_model(score_dag)
