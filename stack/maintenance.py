"""Keeping house in a Delta table: rows past their time, small files, what no kept version needs.

A version is kept for a week, and for ever where lineage names it: its files stay, and where the
log that led to it goes, a checkpoint of it stands in. When a version was written is when its file
of the log was last changed, as in Delta itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from stack.errors import DataError
from stack.storage import KEEP_LOG, make_durable, one_writer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

KEPT = timedelta(days=7)
"""For readers at work, and for features, which are computed from what changed since a version."""
FILE_BYTES = 32 * 1024 * 1024
"""Of a compacted file. Small, as each version that lineage names holds on to its newest ones."""
DIGITS = 20
"""A file of the log is named after its version."""


@dataclass(frozen=True)
class Freed:
    """What went of `what`: rows past their time, files and their bytes; or why it could not."""

    what: str
    files: int = 0
    bytes: int = 0
    rows: int = 0
    problem: str | None = None
    note: str | None = None
    """What was done otherwise than asked, and why."""

    def line(self) -> str:
        if self.problem:
            return f"{self.what}: not done: {self.problem}"
        rows = f"{self.rows:,} rows, " if self.rows else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.what}: {rows}{self.files:,} files, {self.bytes / 1e6:,.1f} MB{note}"


@dataclass(frozen=True)
class Retention:
    """Rows whose `column` lies before `oldest` go. note: why that is not what was asked for."""

    column: str
    oldest: datetime
    note: str | None = None


def tables(data: Path) -> list[Path]:
    """Every Delta table below `data`."""
    return sorted(log.parent for log in data.glob("**/_delta_log"))


def keep_house(
    path: Path,
    as_of: datetime,
    named: Collection[int],
    retention: Retention | None,
    *,
    what: str,
    dry_run: bool,
) -> Freed:
    """Delete rows past their time, compact, vacuum, checkpoint and shorten the log of one table.

    named: versions that stay readable for ever. Killed at any point, the next time goes on.

    Raises:
        DataError: another writer held the table for a minute, or Delta refused.

    """
    try:
        with one_writer(path):
            before, began = _sizes(path), datetime.now(UTC)
            rows = _past(path, retention)
            if not dry_run:
                _rewrite(path, retention if rows else None)
            kept, first = _kept(path, as_of, named)
            gone = _unneeded(path, kept, first)
            if not dry_run:
                _vacuum(path, kept, dry_run=False)
                _checkpoint(path, kept, first)
                make_durable(path, began)  # the checkpoints stand in for what goes
                for file in gone:
                    file.unlink(missing_ok=True)
                left = _sizes(path)
                files = [file for file in before if file not in left]
            else:
                files = [str(file) for file in gone] + _vacuum(path, kept, dry_run=True)
    except DeltaError as exc:
        raise DataError(f"table {what}: {' '.join(str(exc).split())}") from exc
    size = sum(before.get(file, 0) for file in files)
    return Freed(what, len(files), size, rows, note=retention.note if retention else None)


def remove(files: Iterable[Path], *, what: str, dry_run: bool) -> Freed:
    """Remove files; one that is gone already does not count."""
    count = size = 0
    for file in files:
        try:
            there = file.stat().st_size
            if not dry_run:
                file.unlink()
        except FileNotFoundError:
            continue
        count, size = count + 1, size + there
    return Freed(what, count, size)


def older(files: Iterable[Path], than: datetime) -> list[Path]:
    """Those of `files` that were last changed before a moment."""
    return [file for file in files if file.is_file() and _changed(file) < than]


def unused_folders(within: Path, than: datetime) -> list[Path]:
    """Folders below `within` that were last changed before a moment, the innermost first."""
    folders = [path for path in within.glob("**/*") if path.is_dir() and _changed(path) < than]
    return sorted(folders, reverse=True)


def _past(path: Path, retention: Retention | None) -> int:
    if retention is None:
        return 0
    rows = DeltaTable(str(path)).to_pyarrow_dataset()
    return int(rows.count_rows(filter=pc.field(retention.column) < retention.oldest))


def _rewrite(path: Path, retention: Retention | None) -> None:
    table = DeltaTable(str(path))
    if retention:
        past = f"{retention.column} < '{retention.oldest.astimezone(UTC).isoformat()}'"
        table.delete(past, post_commithook_properties=KEEP_LOG)
    table.optimize.compact(target_size=FILE_BYTES, post_commithook_properties=KEEP_LOG)


def _kept(path: Path, as_of: datetime, named: Collection[int]) -> tuple[list[int], int]:
    """Versions that stay readable, oldest first; and the first of those that stay for their age."""
    newest = DeltaTable(str(path)).version()
    written = {_version(file): _changed(file) for file in _log(path).glob("*.json")}
    young = [version for version, at in written.items() if at > as_of - KEPT]
    first = min([*young, newest])
    old = {version for version in named if version < first and _readable(path, version)}
    return sorted(old | {version for version in written if version >= first} | {newest}), first


def _readable(path: Path, version: int) -> bool:
    try:
        DeltaTable(str(path), version=version)
    except DeltaError:
        return False
    return True


def _vacuum(path: Path, kept: list[int], *, dry_run: bool) -> list[str]:
    """Remove data files that no kept version has, those of killed writers too; say which."""
    gone = DeltaTable(str(path)).vacuum(
        0, dry_run=dry_run, enforce_retention_duration=False, full=True, keep_versions=kept,
        post_commithook_properties=KEEP_LOG,
    )  # fmt: skip
    return [str(path / file) for file in gone]


def _checkpoint(path: Path, kept: list[int], first: int) -> None:
    """Make each kept version readable without the log before it; the newest is the last."""
    there = {_version(file) for file in _log(path).glob("*.checkpoint*.parquet")}
    for version in kept:
        if version <= first and version not in there:
            DeltaTable(str(path), version=version).create_checkpoint()
    DeltaTable(str(path)).create_checkpoint()


def _unneeded(path: Path, kept: list[int], first: int) -> list[Path]:
    """Files of the log before `first` but for those of kept versions."""
    files = (file for file in _log(path).glob("*") if file.name[:DIGITS].isdigit())
    return [file for file in files if _version(file) < first and _version(file) not in kept]


def _log(path: Path) -> Path:
    return path / "_delta_log"


def _version(file: Path) -> int:
    return int(file.name[:DIGITS])


def _changed(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of every file below `path`."""
    found = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)  # noqa: PTH118
    return {file: os.stat(file).st_size for file in found}  # noqa: PTH116
