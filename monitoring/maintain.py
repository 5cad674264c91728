"""`gyre maintain`: everything that grows is kept in bounds. Every part may be killed."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa

from core.errors import GyreError
from core.locks import one_writer
from core.settings import Settings
from core.spec import broken_specs, load_specs
from core.storage import Table
from feature_repo.datasets import load_dataset
from mlflow_server.records import Records
from mlflow_server.tracking import Tracking
from stack.environment import airflow_environment, process_environment

AGE_COLUMNS = {"predictions": "received", "outcomes": "received", "scores": "as_of"}
"""Time of a row, by table; raw rows stay whatever their age."""
JUDGED = timedelta(days=30)
"""How long a prediction stays, at least, once its outcome can be known."""
AIRFLOW, REPORTS, ALERTS = timedelta(days=30), timedelta(days=90), timedelta(days=400)
UNUSED = timedelta(days=7)
ONE_DAY = timedelta(days=1)
OLD_FILES = {
    "malformed lines set aside": ("serving/**/*.malformed", ALERTS),
    "Airflow's task logs": ("airflow/logs/**/*", AIRFLOW),
    "copies of files on S3": ("cache/**/*", UNUSED),
}
"""Files below the home, and the age at which they go."""
CLEAN_AIRFLOW = (
    "db clean --skip-archive --yes --error-on-cleanup-failure --batch-size 1000 "
    "--clean-before-timestamp"
)
"""In batches, as its SQLite has one writer. The file does not shrink; free pages are used again."""


@dataclass(frozen=True)
class Cleanup:
    """What went of `what`: rows and files; or the problem. note: what else to know."""

    what: str = ""
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
    """Free what is past its time at `as_of`; a part that cannot be done says why.

    DataError: another maintenance, or a backup, goes on.
    """
    parts = dict[str, Callable[[], Cleanup]]()
    for log in sorted(settings.data.glob("**/_delta_log")):
        name = log.parent.relative_to(settings.data).as_posix()
        parts[name] = partial(_table, settings, name, as_of)
    parts["drift reports"] = partial(_reports, Tracking(settings), as_of - REPORTS)
    for what, (pattern, age) in OLD_FILES.items():
        parts[what] = partial(_old_files, settings.home, pattern, as_of - age)
    parts["rows that Spark left"] = partial(_scratch, settings, as_of - ONE_DAY)
    parts["alerts"] = partial(_records, settings, Records.forget_alerts, as_of)
    parts["decisions"] = partial(_records, settings, Records.forget_decisions, as_of)
    parts["Airflow's rows"] = partial(_airflow, settings, as_of)
    done = list[Cleanup]()
    with one_writer(settings, "maintain"):
        for what, part in parts.items():
            try:
                done.append(replace(part(), what=what))
            except (GyreError, OSError) as exc:
                done.append(Cleanup(what, problem=str(exc)))
    return done


def _table(settings: Settings, name: str, as_of: datetime) -> Cleanup:
    age, note = timedelta(days=settings.keep_days.get(name, 0)), None
    if name == "predictions":
        if broken := broken_specs():  # what their models need is not known
            return Cleanup(
                problem=f"left as it is: a spec cannot be read: {'; '.join(broken)}"
            )
        labels = [
            load_dataset(spec.dataset).labels[spec.label] for spec in load_specs()
        ]
        waits = [label.horizon + label.lateness for label in labels]
        least = max(waits, default=timedelta()) + JUDGED
        if least > age:
            note = (
                f"kept for {least.days} days, not {age.days}: 30 more than labels take"
            )
            age = least
    table = Table(settings, name, pa.schema([]))
    rows, files = table.clean_up(AGE_COLUMNS.get(name), as_of - age)
    return Cleanup(files=files, rows=rows, note=note)


def _old_files(home: Path, pattern: str, before: datetime) -> Cleanup:
    """Files, and empty folders, that were last changed before a moment."""
    old = [
        path for path in home.glob(pattern) if path.stat().st_mtime < before.timestamp()
    ]
    folders = [path for path in old if path.is_dir()]
    files = [path for path in old if path not in folders]
    for file in files:
        file.unlink(missing_ok=True)
    for folder in sorted(folders, reverse=True):  # the innermost first
        with suppress(OSError):  # not empty
            folder.rmdir()
    return Cleanup(files=len(files))


def _scratch(settings: Settings, before: datetime) -> Cleanup:
    """Rows of jobs whose process was killed: folders that nothing was written to since a moment."""
    file_count = 0
    for folder in settings.scratch.glob("*"):
        paths = [*folder.glob("**/*")]
        # S3 knows no time of a folder.
        newest_time = max(path.stat().st_mtime for path in (folder, *paths))
        if newest_time < before.timestamp():
            folder.fs.rm(folder.path, recursive=True)
            file_count += len(paths)
    return Cleanup(files=file_count)


def _reports(tracking: Tracking, before: datetime) -> Cleanup:
    """Evidently's reports on windows before a moment; the figures of a run stay."""
    files = 0
    experiments = {f"{spec.experiment}_monitoring" for spec in load_specs()}
    for run in (run for name in sorted(experiments) for run in tracking.runs(name)):
        for folder in tracking.artifacts(run.run_id, "reports"):
            if Path(folder).name < f"{before:%Y-%m-%dT%H%M%S}":
                files += len(tracking.artifacts(run.run_id, folder))
                tracking.delete_artifacts(run.run_id, folder)
    return Cleanup(files=files)


def _records(
    settings: Settings, forget: Callable[..., int], as_of: datetime
) -> Cleanup:
    with closing(Records(settings)) as records:
        return Cleanup(rows=forget(records, as_of - ALERTS))


def _airflow(settings: Settings, as_of: datetime) -> Cleanup:
    """Airflow's own command."""
    database = settings.home / "airflow" / "airflow.db"
    if not settings.database_url and not database.exists():
        return Cleanup()
    airflow, before = (
        Path(sys.executable).with_name("airflow"),
        (as_of - AIRFLOW).isoformat(),
    )
    command = [str(airflow), *CLEAN_AIRFLOW.split(), before]
    env = process_environment(settings) | airflow_environment(settings)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    problem = (
        " ".join((done.stderr or done.stdout).split())[-300:]
        if done.returncode
        else None
    )
    return Cleanup(problem=problem)
