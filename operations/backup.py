"""`gyre backup`, `gyre restore`: a folder from which the home of a stack can be made again.

Writers of tables, features and roles wait while the databases dump themselves and every other file
gets a second name, a hard link, in `run/backup`. The links are copied after that. A link is enough,
as a changed file is a new file of the same name; files of APPENDED are copied at once.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values, unset_key

from core.errors import StackError
from core.files import reached
from core.locks import INGEST_LOCK, ONLINE_LOCK, one_writer
from core.project import ENV_FILE
from core.settings import LAYOUT, PORTS, SCHEMAS, SHARED, Settings
from core.spec import load_specs
from core.tables.addresses import table_names
from mlflow_server.promotion.ledger import Ledger
from operations.postgresql import run_command, run_on_database
from stack.machine import LAYOUT_FILE

SUMS = "SHA256SUMS"
"""File with the sums of all other files, for `sha256sum -c`."""
POSTGRES = "postgres.dump"
SQLITE = ("ledger.db", "mlflow/mlflow.db", "airflow/airflow.db", "feast/registry.db")
LINKED = ("data", "reports", "mlflow/artifacts", "airflow/secrets.json", LAYOUT_FILE)
APPENDED = ("redis", "serving/log")
PLACE_SETTINGS = {*SHARED, *(f"{name}_port" for name in PORTS)}
"""Settings of where the parts of a stack are: the stack of a backup keeps them for itself."""
LOCK_SECONDS = 300.0
"""How long a backup waits for a writer, such as an ingest."""


@dataclass(frozen=True)
class Backup:
    """A folder from which a stack can be made."""

    folder: Path
    files: int
    size: int
    """Bytes of all files."""


def backup(settings: Settings, target: Path) -> Backup:
    """Write the home of `settings`, whose stack may run, to the new folder `target`.

    Raises:
        StackError: The folder is there, the home holds no stack, or a database cannot be dumped.
        DataError: A writer held its lock for 5 minutes, or the folder cannot be written.

    """
    home = settings.home
    if not (home / LAYOUT_FILE).exists():
        raise StackError(f"{home} holds no stack yet: gyre up")
    if target.exists():
        raise StackError(f"{target} is there already: choose another name")
    with (
        one_writer(settings, "backup", LOCK_SECONDS),
        reached(str(target)),
        _partial_folder(target) as part,
    ):
        with _partial_folder(home / "run" / "backup") as staged:
            with _hold_writers(settings):
                _stage(settings, staged)
            shutil.copytree(staged, part, dirs_exist_ok=True)
        sums = run_command(
            part, "find", ".", "-type", "f", "-exec", "sha256sum", "{}", "+"
        )
        (part / SUMS).write_text(sums)
        part.rename(target)
    return _describe(target)


def restore(settings: Settings, source: Path) -> Backup:
    """Make the home of `settings`, which must be empty, from a backup.

    Raises:
        StackError: The home is not empty; or the backup is cut short, altered, of another layout or
            of other databases; or PostgreSQL refused its dump. Nothing of the backup is left.
        DataError: A file cannot be read or written.

    """
    home = settings.home
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise StackError(f"{home} is not empty: set GYRE_HOME to a new folder")
    with reached(str(source)):
        verify_backup(settings, source)
        with _partial_folder(home) as part:
            shutil.copytree(source, part, dirs_exist_ok=True)
            if settings.database_url:
                run_on_database(
                    settings,
                    "pg_restore",
                    "--single-transaction",
                    str(part / POSTGRES),
                )
            for name in (SUMS, POSTGRES):
                (part / name).unlink(missing_ok=True)
            part.rename(home)
    return _describe(source)


def verify_backup(settings: Settings, source: Path) -> None:
    """Read all of a backup.

    Raises:
        StackError: It cannot be restored, for a reason in one line.

    """
    if not (source / SUMS).exists():
        raise StackError(f"{source}: no backup: it has no {SUMS}")
    layout = (source / LAYOUT_FILE).read_text().strip()
    if layout != LAYOUT:
        raise StackError(
            f"{source}: has layout {layout}, this release needs layout {LAYOUT}: "
            "restore it with the release that made it"
        )
    try:
        run_command(source, "sha256sum", "--check", "--strict", "--quiet", SUMS)
    except StackError as exc:
        raise StackError(f"{source}: cut short or altered: {exc}") from exc
    sum_count = len((source / SUMS).read_text().splitlines())
    file_count = sum(path.is_file() for path in source.rglob("*")) - 1  # without SUMS
    if file_count > sum_count:
        raise StackError(
            f"{source}: altered: {file_count - sum_count} of its files have no sum in {SUMS}"
        )
    if (source / POSTGRES).exists() != bool(settings.database_url):
        kind = "SQLite: leave out" if settings.database_url else "PostgreSQL: set"
        raise StackError(f"{source}: its databases are of {kind} GYRE_DATABASE_URL")


@contextmanager
def _partial_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path`, for its owner alone; it is deleted in the end, unless renamed."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # a killed process left it
    part.mkdir(mode=0o700, parents=True)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _hold_writers(settings: Settings) -> Iterator[None]:
    """Hold the locks of all writers, the outermost first."""
    tables = table_names(settings)
    datasets = [name.removeprefix("raw/") for name in tables if name.startswith("raw/")]
    ingests = map(INGEST_LOCK.format, datasets)
    online_writers = map(ONLINE_LOCK.format, datasets)
    with Ledger(settings) as ledger, ExitStack() as locks:
        for name in ("maintain", *ingests, *online_writers, "collect", *tables):
            locks.enter_context(one_writer(settings, name, LOCK_SECONDS))
        for spec in load_specs():
            locks.enter_context(ledger.exclusive(spec.name))
        yield


def _stage(settings: Settings, staged: Path) -> None:
    """Put all files of a backup below `staged`."""
    home = settings.home
    if settings.database_url:
        schemas = [f"--schema={name}" for name in SCHEMAS]
        run_on_database(
            settings, "pg_dump", "-Fc", "-f", str(staged / POSTGRES), *schemas
        )
    else:
        for name in SQLITE:
            _put(home, staged, name, _dump)
    for name in LINKED:
        _put(home, staged, name, _link)
    for name in APPENDED:
        _put(home, staged, name, _copy)
    if (home / ENV_FILE).exists():
        copy = staged / ENV_FILE
        shutil.copy2(home / ENV_FILE, copy)
        copy.chmod(0o600)
        for variable in dotenv_values(copy):
            setting = variable.lower().removeprefix("gyre_").partition("__")[0]
            if setting in PLACE_SETTINGS:
                unset_key(copy, variable)


def _put(
    home: Path, staged: Path, name: str, put: Callable[[Path, Path], None]
) -> None:
    """Put a file, or all files of a folder, below `staged`; again if files came or went meanwhile.

    Redis replaces the files of its log while it rewrites them, and serving renames full files.
    """
    while True:
        target = staged / name
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
        before = _names(home, name)
        for file in before:
            copy = staged / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # it was deleted meanwhile
                put(home / file, copy)
        if _names(home, name) == before:
            return


def _names(folder: Path, below: str = "") -> set[str]:
    """Return the files below a folder, without unfinished ones of a Redis that rewrites its log."""
    root = folder / below
    if root.is_file():
        return {below}
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        file.relative_to(folder).as_posix()
        for file in files
        if not file.name.startswith("temp-rewriteaof")
    }


def _dump(database: Path, copy: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(database)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.Error as exc:
        raise StackError(f"{database}: {exc}") from exc


def _link(file: Path, copy: Path) -> None:
    try:
        os.link(file, copy)
    except OSError:  # it is on another disk; or it is gone, and the copy raises that
        shutil.copy2(file, copy)


def _copy(file: Path, copy: Path) -> None:
    """Copy a file that grows; a file of serving's log up to its last whole line."""
    shutil.copyfile(file, copy)
    if file.suffix == ".jsonl":
        os.truncate(copy, copy.read_bytes().rfind(b"\n") + 1)


def _describe(folder: Path) -> Backup:
    names = _names(folder)
    size = sum((folder / name).stat().st_size for name in names)
    return Backup(folder, len(names), size)
