"""Feature engine: Ibis expressions over the raw tables, each view a folder of parquet files.

A view is a symbolic link to a folder named after what it stands on: the expression and the version
of the raw table. Its rows are cut into periods of event time. A row depends on rows of its entity
at or before its time, so a change moves nothing before it: of the periods from the earliest change
on, rows of changed entities are computed anew and all others copied; earlier periods are linked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.engines import open_engine
from feature_repo.engines.duckdb import DuckDBEngine, connect
from feature_repo.engines.period import PERIOD
from stack.errors import DataError
from stack.moment import BEGINNING
from stack.storage import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    import ibis.expr.types as ir

    from feature_repo.definition import Dataset, Expression, Label
    from stack.settings import Settings

TIME = pa.timestamp("us", tz="UTC")


def raw_table(settings: Settings, dataset: Dataset) -> Table:
    """The dataset's rows as they became known: source columns, `ingested_at` and `superseded`.

    ingested_at: when the row arrived; of a key the newest arrival stands.
    superseded: of an event that corrected a row that row as JSON. The source may still deliver it:
    it is no news.
    """
    arrival = [pa.field("ingested_at", TIME), pa.field("superseded", pa.string())]
    return Table(settings.data / "raw" / dataset.name, pa.schema([*dataset.schema, *arrival]))


def write_views(settings: Settings, dataset: Dataset, raw: Table) -> None:
    """Bring every view of `dataset` to the newest version of its raw table.

    A view that stands on it already is left as it is; one of another expression is computed in
    full. Either way its rows are those of the full computation. The new folder takes the place of
    the old one when it is complete; the old one stays, for those who read it, until the next time.

    Raises:
        DataError: the raw table is empty, so there is nothing to compute from.

    """
    if raw.version < 0:
        raise DataError(f"{dataset.name}: no rows yet; check the source")
    settings.features.mkdir(parents=True, exist_ok=True)
    for name in dataset.views:
        link, wanted = view_path(settings, name), _standing(dataset, name, raw)
        old = _target(link)
        if old == wanted and link.exists():
            continue
        for left in settings.features.glob(f"{name}.*.*"):
            if left.name != old:
                shutil.rmtree(left)
        partial = settings.features / f"{wanted}.part"
        partial.mkdir()
        _write(settings, partial, dataset, name, raw)
        partial.rename(link.parent / wanted)
        _point(link, wanted)


def view_path(settings: Settings, view: str) -> Path:
    return settings.features / f"{view}.parquet"


def unbuilt(settings: Settings, dataset: Dataset, view: str, fields: Iterable[str]) -> str | None:
    """Say why `view`, published with `fields`, has not the rows of its expression; None if it has.

    Rows that came since are no reason: that the features are late is another figure.
    """
    ingest = f"run: gyre ingest {dataset.name}"
    raw, folder = raw_table(settings, dataset), view_path(settings, view).resolve()
    file = next(folder.glob("*/*.parquet"), None)
    if file is None or not raw.exists:
        return f"{view}: applied, not built (no rows yet); {ingest}"
    if view in redefined(settings, dataset, raw):
        return f"{view}: applied, not built (its rows are of another expression); {ingest}"
    if lacking := sorted(set(fields) - set(pq.read_schema(file).names)):
        return (
            f"{view}: applied, not built (its expression gives no {', '.join(lacking)}); "
            f"add it to the expression, then {ingest}"
        )
    return None


def redefined(settings: Settings, dataset: Dataset, raw: Table) -> list[str]:
    """Return the views whose rows, if there are any, are not of the expression in the code."""
    if not raw.exists:
        return []
    return [
        name for name in dataset.views
        if _expression(_target(view_path(settings, name)))
        != _expression(_standing(dataset, name, raw))
    ]  # fmt: skip


def news(settings: Settings, dataset: Dataset, raw: Table) -> pa.Table | None:
    """Raw rows that came or went (`gone`) since `note_online`; None if that cannot be told."""
    found = [raw.schema.append(pa.field("gone", pa.bool_())).empty_table()]
    for name in dataset.views:
        known, wanted = _target(_online(settings, name)), _standing(dataset, name, raw)
        changed = _changed(connect(), raw, known, wanted)
        if changed is None:
            return None
        found.append(changed.to_pyarrow().cast(found[0].schema))
    return pa.concat_tables(found)


def forget_online(settings: Settings, dataset: Dataset) -> None:
    """Before every value is written anew: what is online then is of no known standing."""
    for name in dataset.views:
        _online(settings, name).unlink(missing_ok=True)


def note_online(settings: Settings, dataset: Dataset) -> None:
    """Keep that what the views stand on is what the online store has seen."""
    for name in dataset.views:
        _point(_online(settings, name), _target(view_path(settings, name)))


def open_raw(
    raw: Table, version: int | None = None, as_of: datetime | None = None, connection: Any = None
) -> ir.Table:
    """Open a version of a raw table; `as_of` hides rows that became known only later."""
    rows = (connection or connect()).read_parquet(raw.files(version))
    return rows if as_of is None else rows.filter(rows.ingested_at <= ibis.literal(as_of))


def entities(
    settings: Settings,
    views: Iterable[str],
    key: Iterable[str],
    until: datetime | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Entities with a row in one of `views` at or before `until`, the newest row first.

    key: its join keys; views that lack some of them do not count.
    """
    columns, parts = [*key], list[Any]()
    with closing(DuckDBEngine(None)) as engine:
        for view in views:
            files = [*map(str, view_path(settings, view).glob("*/*.parquet"))]
            rows = engine.connection.read_parquet(files) if files else None
            if rows is not None and set(columns) <= set(rows.columns):
                parts.append(rows.select(*columns, at=rows.event_timestamp))
        if not parts:
            return []
        rows = ibis.union(*parts)
        rows = rows if until is None else rows.filter(rows["at"] <= ibis.literal(until))
        newest = rows.group_by(columns).agg(at=rows["at"].max())
        ordered = newest.order_by(ibis.desc("at"), *columns).select(columns).limit(limit)
        found: list[dict[str, Any]] = ordered.to_pyarrow().to_pylist()
    return found


def labels(raw: ir.Table, label: Label, snapshots: Sequence[datetime]) -> pa.Table:
    """Rows (join keys, event_timestamp, label) of every snapshot, in one order."""
    moments = ibis.memtable(pa.table({"event_timestamp": pa.array(snapshots, TIME)}))
    rows = _in_microseconds(label.expression(raw, moments).to_pyarrow())
    keys = [name for name in rows.column_names if name not in {"event_timestamp", "label"}]
    return rows.sort_by([(name, "ascending") for name in ("event_timestamp", *keys)])


def _online(settings: Settings, view: str) -> Path:
    return settings.features / f"{view}.online"


def _target(link: Path) -> str:
    return link.readlink().name if link.is_symlink() else ""


def _point(link: Path, target: str) -> None:
    """Make `link` point to `target` in one step."""
    fresh = link.with_name(f".{link.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def _standing(dataset: Dataset, view: str, raw: Table) -> str:
    """Name of what a view is computed from: expression and DuckDB, the raw table, its version."""
    sql = _sql(dataset.views[view], raw.schema)
    parts = f"{sql} {raw.identity} {PERIOD} {duckdb.__version__}"
    digest = hashlib.sha256(parts.encode()).hexdigest()
    return f"{view}.{digest[:16]}.{raw.version}"


def _expression(standing: str) -> str:
    return standing.rpartition(".")[0]


@cache
def _sql(expression: Expression, schema: pa.Schema) -> str:
    unbound = ibis.table(ibis.Schema.from_pyarrow(schema), name="raw")
    sql = str(ibis.to_sql(expression(unbound), dialect="duckdb", pretty=False))
    # Ibis keeps the columns of `drop` in a set, whose order is another in each process.
    return re.sub(r"EXCLUDE \(([^)]*)\)", lambda found: str(sorted(found[1].split(", "))), sql)


def _changed(connection: Any, raw: Table, known: str, wanted: str) -> ir.Table | None:
    """Rows that came or went (`gone`) between two standings; None if that cannot be told."""
    (before, _, since), (after, _, version) = known.rpartition("."), wanted.rpartition(".")
    files = raw.changed_files(int(since), int(version)) if before == after else None
    if files is None:
        return None
    none = open_raw(raw, int(version), connection=connection).limit(0)
    added, removed = (
        (connection.read_parquet(paths) if paths else none).select(raw.schema.names)
        for paths in files
    )
    # Files that went mostly hold what files that came hold too: a merge copies, so does compaction.
    came = added.difference(removed, distinct=False) if files[1] else added
    gone = removed.difference(added, distinct=False) if files[1] else removed
    return came.mutate(gone=False).union(gone.mutate(gone=True))


def _write(settings: Settings, folder: Path, dataset: Dataset, view: str, raw: Table) -> None:
    """Write the rows of `view` into `folder`; of those it has now, what can be kept is kept."""
    wanted, old, kept = folder.stem, view_path(settings, view).resolve(), list[Path]()
    with (
        TemporaryDirectory(dir=folder.parent, prefix=f"{view}.spill.") as spill,
        closing(open_engine(settings, Path(spill))) as engine,
    ):
        connection, key = engine.connection, dataset.entity
        rows = open_raw(raw, int(wanted.rpartition(".")[2]), connection=connection)
        changed = _changed(connection, raw, old.name, wanted) if old.is_dir() else None
        if changed is None:
            engine.write(dataset.views[view](rows), folder)
        else:
            touched = engine.hold(changed)
            earliest = touched[dataset.event_time].min().to_pyarrow().as_py()
            first = (earliest - BEGINNING) // PERIOD if earliest else sys.maxsize
            new = dataset.views[view](rows.semi_join(touched, key))
            periods = {path: int(path.name.partition("=")[2]) for path in old.iterdir()}
            kept = [path for path, period in periods.items() if period < first]
            again = [f"{path}/*.parquet" for path in periods.keys() - set(kept)]
            if again:
                known = connection.read_parquet(again).anti_join(touched, key)
                new = new.union(known.select(new.columns).cast(new.schema()))
            engine.write(new, folder, first)
    for path in folder.glob("*/*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in kept:
        shutil.copytree(path, folder / path.name, copy_function=os.link)


def _in_microseconds(rows: pa.Table) -> pa.Table:
    """Feast's DuckDB store wants microsecond UTC timestamps."""
    fields = [f.with_type(TIME) if pa.types.is_timestamp(f.type) else f for f in rows.schema]
    return rows.cast(pa.schema(fields))
