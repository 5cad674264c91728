"""`score_<MODEL>`: every night what the version in production says of the whole population.

Written as a Delta table (training/batch.py), a day in place of itself however often it is run.
`monitor_<MODEL>` looks at it where too few have asked for a verdict.
"""

from __future__ import annotations

from airflow.sdk import DAG, task

from dags.run import ONE_RUN, WRITERS, current, for_each_model, note, task_defaults
from stack.spec import ModelSpec, load_spec

NIGHTLY = "15 0 * * *"
"""After the ingest of midnight, which completes the day."""


def score_dag(spec: ModelSpec) -> None:
    with DAG(
        dag_id=f"score_{spec.name}",
        doc_md=__doc__,
        schedule=NIGHTLY,
        **ONE_RUN,
        tags=["gyre", spec.name],
        default_args=task_defaults(spec.name),
    ):
        score(spec.name)


@task(pool=WRITERS)
def score(model: str) -> str:
    """Score the population, with the report as the run's note."""
    from training.batch import score_population  # noqa: PLC0415  (heavy)

    settings, cause = current()
    report = score_population(settings, load_spec(model), cause.as_of)
    note(settings, report.summary())
    return report.summary()


for_each_model(score_dag)
