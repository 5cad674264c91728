"""`gyre backup`, `gyre restore`: a stack's home as a folder that another can be made of.

Writers of tables, features and roles, and maintenance, wait while databases dump themselves and all
other files get a second name in `run/backup`; only then these are copied. A hard link is enough for
that: no file is changed in place but those of GROWING, of which every beginning is whole.
"""

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import AwareDatetime, BaseModel

from core.errors import StackError
from core.files import reached
from core.locks import one_writer
from core.settings import ENV_FILE, PORTS, SCHEMAS, SHARED, Settings
from core.spec import load_specs
from core.storage import Table
from mlflow_server.ledger import Ledger
from stack.machine import LAYOUT, LAYOUT_FILE

MANIFEST, SEAL, POSTGRES = "manifest.json", "manifest.json.sha256", "postgres.dump"
TOOLS = ("gyre", "apache-airflow", "feast", "mlflow")
RELEASES = {name: version(name) for name in TOOLS} | {"layout": LAYOUT}
"""What reads the files of a backup; one of a newer is refused."""
SQLITE = ("ledger.db", "mlflow/mlflow.db", "airflow/airflow.db", "feast/registry.db")
LINKED = ("data", "reports", "mlflow/artifacts", "airflow/secrets.json")
GROWING = ("redis/appendonly.aof", "redis/appendonlydir", "serving/log")
OWN = "|".join((*SHARED, *(f"{name}_port" for name in PORTS)))
PLACE = re.compile(rf"\s*(export\s+)?(GYRE_)?({OWN})(__|\b)", re.IGNORECASE)
"""A line of ENV_FILE that says where a part of one stack is: another has its own."""
SECONDS = 300.0
"""How long to wait for a writer, such as an ingest."""


class Manifest(BaseModel):
    """tables: versions. files: bytes and SHA-256 of each."""

    releases: dict[str, str] = RELEASES
    time: AwareDatetime
    tables: dict[str, int]
    files: dict[str, tuple[int, str]]


def backup(settings: Settings, target: Path) -> Manifest:
    """Write the home of `settings`, whose stack may run, to the new folder `target`.

    Raises:
        StackError: the folder is there, the home is none, or a database cannot be dumped.
        DataError: a writer held its lock for 5 minutes, or the folder cannot be written.

    """
    home = settings.home
    if not (home / LAYOUT_FILE).exists():
        raise StackError(f"{home} holds no stack yet: make up")
    if target.exists():
        raise StackError(f"{target} is there already: choose another name")
    with (
        one_writer(settings, "backup", SECONDS),
        reached(str(target)),
        _part(target) as part,
    ):
        with _part(home / "run" / "backup") as staged:
            with _writers_held(settings) as tables:
                now = datetime.now(UTC)
                _stage(settings, staged)
            shutil.copytree(staged, part, dirs_exist_ok=True)
        manifest = Manifest(time=now, tables=tables, files=_described(part))
        text = manifest.model_dump_json(indent=1)
        (part / MANIFEST).write_text(text)
        (part / SEAL).write_text(_seal(text))
        part.rename(target)
    return manifest


def restore(settings: Settings, source: Path) -> Manifest:
    """Make the home of `settings`, which must be empty, of a backup.

    Raises:
        StackError: it is not, or the backup is cut short, altered or of a newer release, and
            nothing was written; or PostgreSQL refused its dump, and nothing is left.
        DataError: a file cannot be read or written.

    """
    home = settings.home
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise StackError(f"{home} is not empty: set GYRE_HOME to a new folder")
    with reached(str(source)):
        manifest = checked(source)
        if (POSTGRES in manifest.files) != bool(settings.database_url):
            kind = (
                "PostgreSQL: set" if POSTGRES in manifest.files else "SQLite: leave out"
            )
            raise StackError(f"{source}: its databases are of {kind} GYRE_DATABASE_URL")
        with _part(home) as part:
            shutil.copytree(source, part, dirs_exist_ok=True)
            if settings.database_url:
                _postgres(
                    settings, "pg_restore", "--single-transaction", str(part / POSTGRES)
                )
            for name in (MANIFEST, SEAL, POSTGRES):
                (part / name).unlink(missing_ok=True)
            part.rename(home)
    return manifest


def checked(source: Path) -> Manifest:
    """Read all of a backup; a StackError says in one line why it cannot be restored."""
    try:
        text = (source / MANIFEST).read_text()
        manifest = Manifest.model_validate_json(text)
        is_sealed = (source / SEAL).read_text() == _seal(text)
    except (OSError, ValueError):
        is_sealed = False
    if not is_sealed:
        raise StackError(
            f"{source}: no whole backup: {MANIFEST} is missing, altered or of another"
        )
    for name, release in manifest.releases.items():
        if _numbers(release) > _numbers(ours := RELEASES.get(name, "")):
            newer = f"{name} {release}, and this is {ours}"
            raise StackError(
                f"{source}: of a newer release: {newer}: restore it with that one"
            )
    if wrong := {
        name for name, _ in _described(source).items() ^ manifest.files.items()
    }:
        raise StackError(
            f"{source}: cut short or altered: {min(wrong)}: take another copy"
        )
    return manifest


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """Make a folder beside `path`, for its owner alone; it is gone in the end, unless renamed."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of one that was killed
    part.mkdir(mode=0o700, parents=True)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _writers_held(settings: Settings) -> Iterator[dict[str, int]]:
    """Hold whoever writes what a backup has, the outermost lock first; give tables' versions."""
    logs = sorted(settings.data.glob("**/_delta_log"))
    names = [log.parent.relative_to(settings.data).as_posix() for log in logs]
    datasets = [name.removeprefix("raw/") for name in names if name.startswith("raw/")]
    turns = [f"features/{name}" for name in datasets]
    with closing(Ledger(settings)) as ledger, ExitStack() as held:
        for name in ("maintain", *datasets, *turns, "collect", *names):
            held.enter_context(one_writer(settings, name, SECONDS))
        for spec in load_specs():
            held.enter_context(ledger.exclusive(spec.name))
        yield {name: Table(settings, name, pa.schema([])).version for name in names}


def _stage(settings: Settings, staged: Path) -> None:
    """Put files below `staged`."""
    home = settings.home
    if settings.database_url:
        schemas = [f"--schema={name}" for name in SCHEMAS]
        _postgres(settings, "pg_dump", "-Fc", "-f", str(staged / POSTGRES), *schemas)
    else:
        _place(home, staged, SQLITE, _dump)
    _place(home, staged, (*LINKED, LAYOUT_FILE), _link)
    _place(home, staged, GROWING, _copy)
    if (home / ENV_FILE).exists():
        lines = (home / ENV_FILE).read_text().splitlines(keepends=True)
        (staged / ENV_FILE).touch(0o600)
        (staged / ENV_FILE).write_text(
            "".join(line for line in lines if not PLACE.match(line))
        )


def _place(
    home: Path, staged: Path, names: Iterable[str], put: Callable[..., None]
) -> None:
    for path in (path for name in names for path in _files(home / name)):
        copy = staged / path.relative_to(home)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # a page that is written anew
            put(path, copy)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    # Of a folder that goes meanwhile it says nothing.
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


def _dump(database: Path, copy: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(database)) as source,
            closing(sqlite3.connect(copy)) as made,
        ):
            source.backup(made)
    except sqlite3.Error as exc:
        raise StackError(f"{database}: {exc}") from exc


def _link(file: Path, copy: Path) -> None:
    try:
        os.link(file, copy)
    except OSError:  # on another disk; or it is gone, and copying says so
        shutil.copy2(file, copy)


def _copy(file: Path, copy: Path) -> None:
    """Of serving's log, which may end within a line, whole lines."""
    shutil.copyfile(file, copy)
    if file.suffix == ".jsonl":
        os.truncate(copy, copy.read_bytes().rfind(b"\n") + 1)


def _postgres(settings: Settings, program: str, *options: str) -> None:
    """Run pg_dump or pg_restore on the settings' database; no password is in its arguments."""
    known: Any = conninfo_to_dict(
        f"postgresql://{str(settings.database_url).partition('://')[2]}"
    )
    secret = {"PGPASSWORD": known.pop("password", os.environ.get("PGPASSWORD", ""))}
    command = [program, f"--dbname={make_conninfo(**known)}", "--no-owner", *options]
    done = subprocess.run(
        command, env=os.environ | secret, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StackError(f"{program}: {' '.join(done.stderr.split())[-300:]}")


def _described(folder: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for path in _files(folder):
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        found[path.relative_to(folder).as_posix()] = path.stat().st_size, digest
    return {
        name: known for name, known in found.items() if name not in {MANIFEST, SEAL}
    }


def _seal(text: str) -> str:
    """What `sha256sum` prints of MANIFEST."""
    return f"{sha256(text.encode()).hexdigest()}  {MANIFEST}\n"


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]
