"""`ingest`: new rows of each dataset become tables and features.

`GYRE_INGEST_SCHEDULE` is its schedule: every 20 minutes by default.
"""

from airflow.sdk import Asset, task

from core.additions import is_present
from core.errors import SettingsError
from core.settings import load_settings
from core.spec import broken_specs, load_specs
from core.user_code import dataset_names
from dags.run import current_run, new_dag, task_defaults
from stack.airflow_api import WRITE_POOL


def ingest_dag() -> None:
    with new_dag("ingest", __doc__, load_settings().ingest_schedule):
        read_specs()
        for dataset in dataset_names(*(spec.dataset for spec in load_specs())):
            task_of_dataset = ingest.override(
                task_id=f"ingest_{dataset}",
                task_display_name=f"Ingest {dataset}",
                **task_defaults(dataset),
            )
            task_of_dataset(dataset)


@task(task_display_name="Read the specs")
def read_specs() -> None:
    """Fail, which alerts, while a model's file is wrong: the model has no DAGs that could."""
    problems = broken_specs()
    if problems:
        raise SettingsError("; ".join(problems))


@task(pool=WRITE_POOL, outlets=[Asset("features")])
def ingest(dataset: str) -> str:
    from feature_engine.ingest.pipeline import ingest as run  # noqa: PLC0415  (heavy)

    return run(load_settings(), dataset, current_run().as_of).summary()


if is_present("feature_engine"):
    ingest_dag()
