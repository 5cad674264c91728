"""`maintain`: every night, what is past its time goes; what lineage names stays."""

from __future__ import annotations

import logging
from datetime import timedelta

from airflow.sdk import DAG, task

from dags.run import ONE_RUN, WRITERS, current, task_defaults
from stack.errors import StackError

with DAG(
    dag_id="maintain",
    doc_md=__doc__,
    schedule="40 2 * * *",
    **ONE_RUN,
    tags=["gyre"],
    default_args=task_defaults("maintain", retry_delay=timedelta(minutes=1)),
):

    @task(pool=WRITERS, execution_timeout=timedelta(minutes=30))
    def maintain() -> list[str]:
        """Free all that can be freed; fail if a part could not."""
        from monitoring.maintain import maintain as keep_house  # noqa: PLC0415  (heavy)

        settings, cause = current()
        freed = keep_house(settings, cause.as_of)
        lines = [part.line() for part in freed]
        logging.getLogger(__name__).info("\n".join(lines))
        if any(part.problem for part in freed):
            raise StackError("\n".join(part.line() for part in freed if part.problem))
        return lines

    maintain()
