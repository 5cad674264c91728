"""`gyre maintain`: everything that grows is kept in bounds; what lineage names is kept for ever.

Each part can be repeated and may be killed. Nothing here is needed to answer, train or decide.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from feature_repo.datasets import load_dataset
from mlflow_server.records import Records
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.collect import closed_feedback
from stack.environment import airflow_environment, process_environment
from stack.errors import GyreError
from stack.maintenance import Freed, Retention, keep_house, older, remove, tables, unused_folders
from stack.spec import broken_specs, load_specs
from training.lineage import TABLE_TAG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stack.settings import Settings

AGE = {"scores": "as_of"}
"""Column that tells a row's age, where it is not `received`; raw rows stay whatever their age."""
JUDGED = timedelta(days=30)
"""How long a prediction stays, at least, once what came true of it can be known: a look needs
outcomes enough."""
EVERY_REPORT = timedelta(days=14)
STAMP = "%Y-%m-%dT%H%M%S"
"""Folder of a report (act.py)."""
AIRFLOW = timedelta(days=30)
ALERTS = timedelta(days=400)
"""And decisions."""
TASK_LOGS = "airflow/logs"
BATCH = "1000"
"""Rows that Airflow deletes at once: its SQLite has one writer."""
FILES = {
    "reports of stopped batches": ("reports/ingest/*", ALERTS),
    "malformed lines set aside": ("serving/**/*.malformed", ALERTS),
}


def maintain(settings: Settings, as_of: datetime, *, dry_run: bool = False) -> list[Freed]:
    """Free what is past its time at `as_of`; a part that cannot be done says why.

    dry_run: change nothing; say what would go, but for alerts, decisions and Airflow's rows.

    Raises:
        RegistryError: MLflow, which knows what lineage names, does not answer: nothing was changed.

    """
    keep, parts = named_versions(settings), dict[str, Callable[..., Freed]]()
    # Before `outcomes` forgets what is to be stored.
    parts["feedback files"] = partial(_feedback, settings, as_of)
    for path in tables(settings.data):
        name = path.relative_to(settings.data).as_posix()
        parts[name] = partial(_table, settings, path, as_of, keep.get(name, set()))
    parts["drift reports"] = partial(_reports, Tracking(settings), as_of)
    parts["Airflow's task logs"] = partial(_task_logs, settings.home / TASK_LOGS, as_of - AIRFLOW)
    for what, (place, age) in FILES.items():
        parts[what] = partial(_old_files, settings.home, place, as_of - age)
    parts["alerts"] = partial(_forget, settings, lambda found: found.forget_alerts(as_of - ALERTS))
    parts["decisions"] = partial(
        _forget, settings, lambda found: found.forget_decisions(as_of - ALERTS)
    )
    parts["Airflow's rows"] = partial(_airflow, settings, as_of)
    return [_done(what, part, dry_run=dry_run) for what, part in parts.items()]


def named_versions(settings: Settings) -> dict[str, set[int]]:
    """Versions of raw tables that a registered version or a training run was made of, by table."""
    tracking = Tracking(settings)
    experiments = {spec.experiment for spec in load_specs()}
    tags = [run.tags for name in sorted(experiments) for run in tracking.runs(name)]
    found: dict[str, set[int]] = {}
    for each in (*tags, *Registry(settings).tags()):
        for name, value in each.items():
            if name.startswith(TABLE_TAG) and value.isdecimal():  # beside it: .id, .sha256
                found.setdefault(f"raw/{name.removeprefix(TABLE_TAG)}", set()).add(int(value))
    return found


def too_many(reports: Iterable[datetime], as_of: datetime) -> list[datetime]:
    """Of reports older than 14 days all but the first of each week."""
    kept, gone = set[tuple[int, int]](), list[datetime]()
    for at in sorted(at for at in reports if at < as_of - EVERY_REPORT):
        week = at.isocalendar()[:2]
        if week in kept:
            gone.append(at)
        kept.add(week)
    return gone


def _done(what: str, part: Callable[..., Freed], *, dry_run: bool) -> Freed:
    try:
        return part(what=what, dry_run=dry_run)
    except (GyreError, OSError, subprocess.SubprocessError) as exc:
        return Freed(what, problem=str(exc))


def _table(
    settings: Settings, path: Path, as_of: datetime, keep: set[int], *, what: str, dry_run: bool
) -> Freed:
    broken = broken_specs()  # what their models need is not known
    if broken and (what == "predictions" or what.startswith("raw/")):
        return Freed(what, problem=f"left as it is: a spec cannot be read: {'; '.join(broken)}")
    oldest = _retention(settings, what, as_of)
    return keep_house(path, as_of, keep, oldest, what=what, dry_run=dry_run)


def _retention(settings: Settings, table: str, as_of: datetime) -> Retention | None:
    if table not in settings.keep_days:
        return None
    age, note = timedelta(days=settings.keep_days[table]), None
    if table == "predictions" and (least := _until_judged()) > age:
        note = f"kept for {least.days} days, not {age.days}: as long as labels take, and 30 more"
        age = least
    return Retention(AGE.get(table, "received"), as_of - age, note)


def _until_judged() -> timedelta:
    """How old a prediction gets until a look has judged it, whichever model's it is."""
    labels = [load_dataset(spec.dataset).labels[spec.label] for spec in load_specs()]
    return max((each.horizon + each.lateness for each in labels), default=timedelta()) + JUDGED


def _feedback(settings: Settings, as_of: datetime, *, what: str, dry_run: bool) -> Freed:
    past = as_of - timedelta(days=settings.keep_days["outcomes"])
    return remove(closed_feedback(settings, past), what=what, dry_run=dry_run)


def _task_logs(place: Path, than: datetime, *, what: str, dry_run: bool) -> Freed:
    """Files, and the folders that are empty and were left alone as long."""
    unused = unused_folders(place, than)  # before their files go
    freed = remove(older(place.glob("**/*"), than), what=what, dry_run=dry_run)
    for folder in () if dry_run else unused:
        with suppress(OSError):  # not empty
            folder.rmdir()
    return freed


def _reports(tracking: Tracking, as_of: datetime, *, what: str, dry_run: bool) -> Freed:
    freed = Freed(what)
    for experiment in sorted({f"{spec.experiment}_monitoring" for spec in load_specs()}):
        for run in tracking.runs(experiment):
            for folder, sizes in _superfluous(tracking, run.run_id, as_of):
                if not dry_run:
                    tracking.delete_artifacts(run.run_id, folder)
                count, size = freed.files + len(sizes), freed.bytes + sum(sizes)
                freed = replace(freed, files=count, bytes=size)
    return freed


def _superfluous(
    tracking: Tracking, run_id: str, as_of: datetime
) -> Iterator[tuple[str, list[int]]]:
    """Folders of reports that go, each with the sizes of its files."""
    stamped = {}
    for folder in tracking.artifacts(run_id, "reports"):
        with suppress(ValueError):  # somebody else's
            stamped[datetime.strptime(f"{Path(folder).name}+0000", f"{STAMP}%z")] = folder
    for at in too_many(stamped, as_of):
        yield stamped[at], list(tracking.artifacts(run_id, stamped[at]).values())


def _old_files(home: Path, place: str, than: datetime, *, what: str, dry_run: bool) -> Freed:
    return remove(older(home.glob(place), than), what=what, dry_run=dry_run)


def _forget(
    settings: Settings, forget: Callable[[Records], int], *, what: str, dry_run: bool
) -> Freed:
    if dry_run:
        return Freed(what)
    with closing(Records(settings)) as records:
        return Freed(what, rows=forget(records))


def _airflow(settings: Settings, as_of: datetime, *, what: str, dry_run: bool) -> Freed:
    """Airflow's own command; its database file does not shrink, what is free is used again."""
    database = settings.home / "airflow" / "airflow.db"
    if dry_run or not database.exists():
        return Freed(what)
    before = database.stat().st_size
    command = [str(Path(sys.executable).parent / "airflow"), "db", "clean", "--skip-archive"]
    command += ["--clean-before-timestamp", (as_of - AIRFLOW).isoformat(), "--yes"]
    command += ["--batch-size", BATCH, "--error-on-cleanup-failure"]
    env = process_environment(settings) | airflow_environment(settings)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        return Freed(what, problem=" ".join((done.stderr or done.stdout).split())[-300:])
    return Freed(what, bytes=before - database.stat().st_size)
