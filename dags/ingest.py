"""`ingest`: every hour, what is due of each dataset becomes tables and features."""

import logging
from typing import Any

from airflow.sdk import DAG, Asset, task
from airflow.sdk.exceptions import AirflowFailException

from core.spec import broken_specs, load_specs
from core.user_code import dataset_names
from dags.run import ONE_RUN, WRITERS, current, task_defaults

FEATURES = Asset("features")

with DAG(
    dag_id="ingest",
    description=__doc__.splitlines()[0].partition(": ")[2],
    doc_md=__doc__,
    schedule="@hourly",
    **ONE_RUN,
    tags=["gyre"],
    default_args=task_defaults("ingest"),
):

    @task
    def read_specs() -> None:
        """Fail, and so alert, while a model's file is wrong: that model has no DAGs."""
        if broken := broken_specs():
            raise AirflowFailException("; ".join(broken))

    @task(pool=WRITERS, outlets=[FEATURES])
    def ingest(dataset: str, *, outlet_events: Any = None) -> str:
        from feature_repo.ingest import ingest as run  # noqa: PLC0415  (heavy)

        settings, cause = current()
        outlet_events[FEATURES].extra = {
            "as_of": cause.as_of.isoformat(),
            "dataset": dataset,
        }
        summary = run(settings, dataset, cause.as_of).summary()
        logging.getLogger(__name__).info(summary)
        return summary

    read_specs()
    for _dataset in dataset_names(*(spec.dataset for spec in load_specs())):
        ingest.override(task_id=f"ingest_{_dataset}", **task_defaults(_dataset))(
            _dataset
        )
