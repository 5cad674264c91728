"""`gyre maintain`: everything that grows is kept in bounds. Every part may be killed."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa
from upath import UPath

from core.errors import SettingsError, StackError
from core.locks import one_writer
from core.settings import Settings
from core.spec import broken_specs, load_specs
from core.tables.addresses import table_names
from core.tables.table import Table
from core.user_code import in_one_line
from feature_repo.datasets import load_dataset
from mlflow_server.alerts import Alerts
from mlflow_server.api.tracking import Tracking
from stack.environment import process_environment

YEAR = 400
"""Days: of what a person may look up a year later."""
JUDGED = timedelta(days=30)
"""How long a prediction stays, at least, once its outcome can be known."""
TIME_COLUMNS = {
    "outcomes": "received",
    "predictions": "received",
    "scores": "as_of",
    "decisions": "as_of",
    "checks": "as_of",
}
"""By table the time of a row; rows of other tables stay whatever their age."""
CLEAN_AIRFLOW = (
    "db clean --skip-archive --yes --error-on-cleanup-failure --batch-size 1000 "
    "--clean-before-timestamp"
)
"""In batches, as its SQLite has one writer. The file does not shrink; free pages are used again."""


@dataclass(frozen=True)
class Growing:
    """Something that Gyre keeps, and that grows.

    Attributes:
        name: What people read; of a table its name.
        clean: Frees what is older than a time, and returns how many rows and files went.
        days: How long rows and files stay.

    """

    name: str
    clean: Callable[[Settings, datetime], tuple[int, int]]
    days: int = YEAR


@dataclass(frozen=True, kw_only=True)
class Cleanup:
    """What went of a place: rows and files; or the problem. note: what else to know."""

    what: str
    files: int = 0
    rows: int = 0
    problem: str | None = None
    note: str | None = None

    def line(self) -> str:
        if self.problem:
            return f"{self.what}: not done: {self.problem}"
        rows = f"{self.rows:,} rows, " if self.rows else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.what}: {rows}{self.files:,} files{note}"


def maintain(settings: Settings, as_of: datetime) -> list[Cleanup]:
    """Delete rows and files that have expired at `as_of`; a part that fails says why.

    Raises:
        DataError: Another maintenance, or a backup, goes on.

    """
    names = [*TIME_COLUMNS]
    cleanups: list[Cleanup] = []
    with one_writer(settings, "maintain"):
        try:
            names += table_names(settings)
        except Exception as exc:  # noqa: BLE001  (S3 does not answer, or whatever it is)
            cleanups.append(Cleanup(what="list of tables", problem=in_one_line(exc)))
        tables = [
            Growing(name, partial(_clean_table, name)) for name in dict.fromkeys(names)
        ]
        cleanups += [_clean(place, settings, as_of) for place in (*tables, *GROWING)]
    return cleanups


def _clean(place: Growing, settings: Settings, as_of: datetime) -> Cleanup:
    """Clean a place; whatever goes wrong keeps no other from being cleaned."""
    note = None
    age = timedelta(days=place.days)
    try:
        if place.name in settings.keep_days:
            age = timedelta(days=settings.keep_days[place.name])
        if place.name == "predictions":
            least_age = judged_age()
            if age < least_age:
                note = f"kept for {least_age.days} days, not {age.days}, until labels mature"
                age = least_age
        rows, files = place.clean(settings, as_of - age)
    except Exception as exc:  # noqa: BLE001  (see above)
        return Cleanup(what=place.name, problem=in_one_line(exc))
    return Cleanup(what=place.name, rows=rows, files=files, note=note)


def judged_age() -> timedelta:
    """Return how long predictions have to stay until each can be judged.

    Raises:
        SettingsError: A spec is broken, or its dataset lacks its label.

    """
    problems = broken_specs()
    longest_wait = timedelta()
    for spec in load_specs():
        label = load_dataset(spec.dataset).labels.get(spec.label)
        if label:
            longest_wait = max(longest_wait, label.horizon + label.lateness)
        else:
            problems.append(f"{spec.name}: {spec.dataset} has no label {spec.label}")
    if problems:
        raise SettingsError(f"left as it is: labels are unknown: {'; '.join(problems)}")
    return longest_wait + JUDGED


def _clean_table(name: str, settings: Settings, before: datetime) -> tuple[int, int]:
    table = Table(settings, name, pa.schema([]))
    column = TIME_COLUMNS.get(name)
    return table.clean_up(column, before) if table.exists else (0, 0)


def _clean_files(pattern: str, settings: Settings, before: datetime) -> tuple[int, int]:
    """Delete files, and empty folders of a disk, that were last changed before a time.

    They are below the home or below the data.
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


clean_data_docs = partial(_clean_files, "reports/data_docs/**/*.html")


def clean_reports(settings: Settings, before: datetime) -> tuple[int, int]:
    """Delete Evidently's reports on windows before a time; the figures of a run stay."""
    tracking = Tracking(settings)
    file_count = 0
    for experiment in {f"{spec.experiment}_monitoring" for spec in load_specs()}:
        for run in tracking.runs(experiment, deleted=True):
            for folder in tracking.list_artifacts(run.run_id, "reports"):
                if Path(folder.path).name < f"{before:%Y-%m-%dT%H%M%S}":
                    file_count += len(tracking.list_artifacts(run.run_id, folder.path))
                    tracking.delete_artifacts(run.run_id, folder.path)
    return 0, file_count


def _clean_alerts(settings: Settings, before: datetime) -> tuple[int, int]:
    """Delete alerts last seen before a time."""
    with Alerts(settings) as alerts:
        return alerts.forget(before), 0


def _clean_airflow(settings: Settings, before: datetime) -> tuple[int, int]:
    """Have Airflow delete its rows of before a time."""
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


GROWING = (
    Growing("drift reports", clean_reports, 90),
    Growing("Data Docs", clean_data_docs, 90),
    Growing(
        "malformed lines set aside", partial(_clean_files, "serving/**/*.malformed")
    ),
    Growing(
        "malformed lines of replicas", partial(_clean_files, "inbox/*/*.malformed")
    ),
    Growing("Airflow's task logs", partial(_clean_files, "airflow/logs/**/*"), 30),
    Growing("copies of files on S3", partial(_clean_files, "cache/**/*"), 7),
    Growing("rows that Spark left", partial(_clean_files, "scratch/**/*"), 1),
    Growing("alerts", _clean_alerts),
    Growing("Airflow's rows", _clean_airflow, 30),
)
"""What grows beside the tables."""
