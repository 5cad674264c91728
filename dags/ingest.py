"""`ingest`: every hour, what is due of each dataset becomes tables and features."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, task

from dags.run import ONE_RUN, WRITERS, current
from stack.spec import load_specs

FEATURES = Asset("features")

with DAG(
    dag_id="ingest",
    doc_md=__doc__,
    schedule="@hourly",
    **ONE_RUN,
    tags=["gyre"],
    default_args={"retries": 1, "retry_delay": timedelta(seconds=5)},
):
    for _dataset in sorted({spec.dataset for spec in load_specs()}):

        @task(
            task_id=f"ingest_{_dataset}",
            pool=WRITERS,
            outlets=[FEATURES],
            execution_timeout=timedelta(minutes=15),
        )
        def _ingest(dataset: str, *, outlet_events: Any = None) -> str:
            from feature_repo.ingest import ingest  # noqa: PLC0415  (heavy)

            settings, cause = current()
            outlet_events[FEATURES].extra = {"as_of": cause.as_of.isoformat(), "dataset": dataset}
            summary = ingest(settings, dataset, cause.as_of).summary()
            logging.getLogger(__name__).info(summary)
            return summary

        _ingest(_dataset)
