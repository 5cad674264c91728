"""`maintain`: every night, expired rows and files are deleted; files that a lineage names stay."""

from core.additions import is_present
from core.errors import StackError
from core.settings import load_settings
from dags.plan import DagPlan, TaskPlan
from dags.run import Run
from stack.airflow_api import WRITE_POOL


def plan() -> DagPlan | None:
    if not is_present("operations"):
        return None
    task = TaskPlan(
        "maintain", "Delete and compact", step="maintain:maintain", pool=WRITE_POOL
    )
    return DagPlan("maintain", __doc__, [task], subject="maintain", cron="40 2 * * *")


def maintain(run: Run) -> list[str]:
    """Delete in every place; fail if that failed in one of them."""
    from operations.maintain import maintain as clean_up  # noqa: PLC0415  (heavy)

    parts = clean_up(load_settings(), run.as_of)
    failed = [part.line() for part in parts if part.problem]
    if failed:
        raise StackError("\n".join(failed))
    return [part.line() for part in parts]
