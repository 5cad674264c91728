"""Cleaning: the places that grow, how long rows and files stay there, and what deletes them.

Each function deletes rows or files from before a time, and returns how many rows and how many files.
"""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import pyarrow as pa
from upath import UPath

from core.errors import StackError
from core.settings import Settings
from core.spec import load_specs
from core.tables.table import Table
from mlflow_server.alerts import Alerts
from mlflow_server.api.tracking import Tracking
from stack.environment import process_environment

CLEAN_AIRFLOW = (
    "db clean --skip-archive --yes --error-on-cleanup-failure --batch-size 1000 "
    "--clean-before-timestamp"
)
"""It works in batches, as SQLite has one writer. SQLite's file does not shrink; Airflow uses its free
pages again."""


YEAR_DAYS = 400
"""Days that rows stay which a person may look up a year later."""
TIME_COLUMNS = {
    "outcomes": "received",
    "predictions": "received",
    "scores": "as_of",
    "decisions": "as_of",
    "checks": "as_of",
}
"""Table → its column with the time of a row. Rows of other tables stay whatever their age."""


@dataclass(frozen=True)
class GrowingPlace:
    """A place where rows or files become more.

    Attributes:
        name: Name for people and for GYRE_KEEP_DAYS; a table has its own.
        clean: Deletes rows and files from before a time; returns how many rows and files.
        days: Days that rows and files stay, where GYRE_KEEP_DAYS does not name the place.

    """

    name: str
    clean: Callable[[Settings, datetime], tuple[int, int]]
    days: int = YEAR_DAYS


def clean_table(
    name: str, time_column: str | None, settings: Settings, before: datetime
) -> tuple[int, int]:
    table = Table(settings, name, pa.schema([]))
    return table.clean_up(time_column, before) if table.exists else (0, 0)


def clean_files(pattern: str, settings: Settings, before: datetime) -> tuple[int, int]:
    """Delete files below home and data that match a pattern; on a disk empty folders too.

    The time of a file is that of its last change.
    """
    file_count = 0
    for folder in (UPath(settings.home), settings.data):
        # The innermost first.
        paths = sorted(folder.glob(pattern), reverse=True)
        for path in [p for p in paths if p.stat().st_mtime < before.timestamp()]:
            if path.is_file():
                path.unlink(missing_ok=True)
                file_count += 1
            elif isinstance(path, Path):
                with suppress(OSError):  # not empty
                    path.rmdir()
    return 0, file_count


clean_data_docs = partial(clean_files, "reports/data_docs/**/*")


def clean_reports(settings: Settings, before: datetime) -> tuple[int, int]:
    """Delete Evidently's reports on windows of before a time; the figures of their runs stay."""
    tracking = Tracking(settings)
    file_count = 0
    for experiment in {f"{spec.experiment}_monitoring" for spec in load_specs()}:
        for run in tracking.runs(experiment, deleted=True):
            for folder in tracking.list_artifacts(run.run_id, "reports"):
                if Path(folder.path).name < f"{before:%Y-%m-%dT%H%M%S}":
                    file_count += len(tracking.list_artifacts(run.run_id, folder.path))
                    tracking.delete_artifacts(run.run_id, folder.path)
    return 0, file_count


def clean_alerts(settings: Settings, before: datetime) -> tuple[int, int]:
    """Delete alerts that were last seen before a time."""
    with Alerts(settings) as alerts:
        return alerts.forget(before), 0


def clean_airflow(settings: Settings, before: datetime) -> tuple[int, int]:
    """Run Airflow's own command that deletes its rows."""
    database = settings.home / "airflow" / "airflow.db"
    if settings.database_url or database.exists():
        airflow = str(Path(sys.executable).with_name("airflow"))
        result = subprocess.run(
            [airflow, *CLEAN_AIRFLOW.split(), before.isoformat()],
            env=process_environment(settings),
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            output = result.stderr or result.stdout
            raise StackError(" ".join(output.split())[-300:])
    return 0, 0


GROWING_PLACES = (
    GrowingPlace("drift reports", clean_reports, 90),
    GrowingPlace("Data Docs", clean_data_docs, 90),
    GrowingPlace(
        "malformed lines set aside",
        partial(clean_files, "serving/**/*.malformed"),
    ),
    GrowingPlace(
        "malformed lines of replicas", partial(clean_files, "inbox/*/*.malformed")
    ),
    GrowingPlace("Airflow's task logs", partial(clean_files, "airflow/logs/**/*"), 30),
    GrowingPlace("copies of files on S3", partial(clean_files, "cache/**/*"), 7),
    GrowingPlace("rows that Spark left", partial(clean_files, "scratch/**/*"), 1),
    GrowingPlace("alerts", clean_alerts),
    GrowingPlace("Airflow's rows", clean_airflow, 30),
)
"""Places beside the tables."""
