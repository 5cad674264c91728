"""`ingest`: new rows of each dataset become tables and features.

`GYRE_INGEST_SCHEDULE` is its schedule: every 20 minutes by default.
"""

from core.additions import is_present
from core.errors import SettingsError
from core.settings import load_settings
from core.spec import broken_specs, load_specs
from core.user_code import dataset_names
from dags.plan import DagPlan, TaskPlan
from dags.run import Run
from stack.airflow_api import WRITE_POOL


def plan() -> DagPlan | None:
    if not is_present("feature_engine"):
        return None
    specs = load_specs()
    datasets = dataset_names(*(name for spec in specs for name in spec.datasets))
    if specs and not datasets:
        return None  # their features and labels are all a team's own
    models = [spec.name for spec in specs]
    # A file of DAGs that was printed before a model came has other models here.
    first = TaskPlan(
        "read_specs",
        "Read the specs",
        step="ingest:read_specs",
        arguments={"models": models},
    )
    tasks = [first]
    for dataset in datasets:
        task = TaskPlan(
            f"ingest_{dataset}",
            f"Ingest {dataset}",
            step="ingest:ingest",
            arguments={"dataset": dataset},
            asset="features",
            pool=WRITE_POOL,
            subject=dataset,
        )
        tasks.append(task)
    return DagPlan(
        "ingest",
        __doc__,
        tasks,
        subject="ingest",
        cron=load_settings().ingest_schedule,
        is_chain=False,
    )


def read_specs(_: Run, models: list[str]) -> int:
    """Fail, which alerts, while a model's file is wrong: the model has no DAGs that could."""
    problems = broken_specs()
    if problems:
        raise SettingsError("; ".join(problems))
    return len(models)


def ingest(run: Run, dataset: str) -> str:
    from feature_engine.ingest.pipeline import ingest as bring_in  # noqa: PLC0415  (heavy)

    return bring_in(load_settings(), dataset, run.as_of).summary()
