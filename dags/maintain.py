"""`maintain`: every night, what is past its time goes; what lineage names stays."""

import logging
from datetime import timedelta

from airflow.sdk import DAG, task

from core.errors import StackError
from dags.run import ONE_RUN, WRITERS, current, task_defaults

with DAG(
    dag_id="maintain",
    description=__doc__.splitlines()[0].partition(": ")[2],
    doc_md=__doc__,
    schedule="40 2 * * *",
    **ONE_RUN,
    tags=["gyre"],
    default_args=task_defaults("maintain", retry_delay=timedelta(minutes=1)),
):

    @task(pool=WRITERS, execution_timeout=timedelta(minutes=30))
    def maintain() -> list[str]:
        """Free all that can be freed; fail if a part could not."""
        from monitoring.maintain import maintain as clean_up  # noqa: PLC0415  (heavy)

        settings, cause = current()
        parts = clean_up(settings, cause.as_of)
        lines = [part.line() for part in parts]
        logging.getLogger(__name__).info("\n".join(lines))
        if failed := [part.line() for part in parts if part.problem]:
            raise StackError("\n".join(failed))
        return lines

    maintain()
