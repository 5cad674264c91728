"""`maintain`: every night, expired rows and files are deleted; files that a lineage names stay."""

from airflow.sdk import task

from core.additions import is_present
from core.errors import StackError
from core.settings import load_settings
from dags.run import current_run, new_dag
from stack.airflow_api import WRITE_POOL


@task(pool=WRITE_POOL, task_display_name="Delete and compact")
def maintain() -> list[str]:
    """Delete in every place; fail if that failed in one of them."""
    from operations.maintain import maintain as clean_up  # noqa: PLC0415  (heavy)

    parts = clean_up(load_settings(), current_run().as_of)
    failed = [part.line() for part in parts if part.problem]
    if failed:
        raise StackError("\n".join(failed))
    return [part.line() for part in parts]


if is_present("operations"):
    with new_dag("maintain", __doc__, "40 2 * * *"):
        maintain()
