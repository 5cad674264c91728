"""Feature engine: Ibis expressions over the raw tables, each view a folder of parquet files.

A view is a symbolic link to a folder named after what it stands on: the expression and the version
of the raw table. Its rows are cut into periods of event time. Of the periods from the earliest
change on, rows of changed entities are computed anew and all others copied; earlier ones are
linked.
"""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import DataError
from core.settings import Settings
from core.storage import Table
from core.timestamps import BEGINNING
from feature_repo.definition import Dataset, Expression, Label
from feature_repo.engines import PERIOD, connect, connected, open_engine
from feature_repo.view_links import fetch, online_path, point, publish, target, view_path

TIME = pa.timestamp("us", tz="UTC")


def raw_table(settings: Settings, dataset: Dataset) -> Table:
    """The dataset's rows as they became known: source columns, `ingested_at` and `superseded`.

    superseded: of an event that corrected a row that row as JSON. The source may still deliver it:
    it is no news.
    """
    arrival = [pa.field("ingested_at", TIME), pa.field("superseded", pa.string())]
    return Table(settings, f"raw/{dataset.name}", pa.schema([*dataset.schema, *arrival]))


def write_views(settings: Settings, dataset: Dataset, raw: Table) -> None:
    """Bring every view of `dataset` to the newest version of its raw table.

    The new folder takes the place of the old one when it is complete; the old one stays, for those
    who read it, until the next time.

    Raises:
        DataError: the raw table is empty, so there is nothing to compute from.

    """
    if raw.version < 0:
        raise DataError(f"{dataset.name}: no rows yet; check the source")
    settings.features.mkdir(parents=True, exist_ok=True)
    for name in dataset.views:
        fetch(settings, name)
        link, wanted = view_path(settings, name), _standing(dataset, name, raw)
        old = target(settings, link)
        if old == wanted and link.exists():
            continue
        for left in settings.features.glob(f"{name}.*.*"):
            if left.name != old:
                shutil.rmtree(left)
        partial = settings.features / f"{wanted}.part"
        partial.mkdir()
        _write(settings, partial, dataset, name, raw)
        partial.rename(link.parent / wanted)
        publish(settings, name, wanted, old)
        point(settings, link, wanted)


def view_files(settings: Settings, view: str) -> list[str]:
    """Return the files of a view, all of one folder: the link may point to another at any time."""
    fetch(settings, view)
    return [*map(str, view_path(settings, view).resolve().glob("*/*.parquet"))]


def unbuilt(settings: Settings, dataset: Dataset, view: str, fields: Iterable[str]) -> str | None:
    """Say why `view`, published with `fields`, has not the rows of its expression; None if it has.

    Rows that came since are no reason: that the features are late is another figure.
    """
    ingest, files = f"run: gyre ingest {dataset.name}", view_files(settings, view)
    raw = raw_table(settings, dataset)
    if not files or not raw.exists:
        return f"{view}: applied, not built (no rows yet); {ingest}"
    if view in redefined(settings, dataset, raw):
        return f"{view}: applied, not built (its rows are of another expression); {ingest}"
    if lacking := sorted(set(fields) - set(pq.read_schema(files[0]).names)):
        why = f"its expression gives no {', '.join(lacking)}"
        return f"{view}: applied, not built ({why}); add it to the expression, then {ingest}"
    return None


def redefined(settings: Settings, dataset: Dataset, raw: Table) -> list[str]:
    """Return the views whose rows, if there are any, are not of the expression in the code."""
    if not raw.exists:
        return []
    standings = {name: _standing(dataset, name, raw) for name in dataset.views}
    targets = {name: target(settings, view_path(settings, name)) for name in dataset.views}
    return [
        name
        for name in dataset.views
        if targets[name].rpartition(".")[0] != standings[name].rpartition(".")[0]
    ]


def news(settings: Settings, dataset: Dataset, raw: Table) -> pa.Table | None:
    """Raw rows that came or went (`gone`) since `note_online`; None if that cannot be told."""
    found = [raw.schema.append(pa.field("gone", pa.bool_())).empty_table()]
    for name in dataset.views:
        known, wanted = target(settings, online_path(settings, name)), _standing(dataset, name, raw)
        with connected() as connection:
            changed = _changed(connection, raw, known, wanted)
            if changed is None:
                return None
            found.append(changed.to_pyarrow().cast(found[0].schema))
    return pa.concat_tables(found)


def forget_online(settings: Settings, dataset: Dataset) -> None:
    """Forget which raw version the online store was filled from, before all is written anew."""
    for name in dataset.views:
        point(settings, online_path(settings, name), "")


def note_online(settings: Settings, dataset: Dataset) -> None:
    """Remember the expression and the raw version that the online store was filled from."""
    for name in dataset.views:
        standing = target(settings, view_path(settings, name))
        point(settings, online_path(settings, name), standing)


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

    key: their join keys. What a view lacks of them comes from entities of the others, in turn.
    """
    columns, groups, known = [*key], dict[tuple[str, ...], list[Any]](), list[Any]()
    with connected() as connection:
        for view in views:
            if not (files := view_files(settings, view)):
                continue
            rows = connection.read_parquet(files)
            if own := tuple(name for name in columns if name in rows.columns):
                groups.setdefault(own, []).append(rows.select(*own, at=rows.event_timestamp))
        for own, parts in groups.items():
            rows = ibis.union(*parts)
            rows = rows if until is None else rows.filter(rows["at"] <= ibis.literal(until))
            newest = rows.group_by(own).agg(at=rows["at"].max())
            ordered = newest.order_by(ibis.desc("at"), *own).select(own).limit(limit)
            known.append(connection.to_pyarrow(ordered).to_pylist())
    known = [part for part in known if part]
    if {*columns} != {name for part in known for name in part[0]}:
        return []
    if len(known) == 1:
        return list[dict[str, Any]](known[0])
    found = dict[tuple[Any, ...], dict[str, Any]]()
    for number, row in (pair for part in known for pair in enumerate(part)):
        values = {n: v for part in (*known, [row]) for n, v in part[number % len(part)].items()}
        entity = {name: values[name] for name in columns}
        found[tuple(entity.values())] = entity
    return [*found.values()]


def labels(
    raw: ir.Table, label: Label, snapshots: Sequence[datetime], *, own: bool = False
) -> pa.Table:
    """Rows (join keys, event_timestamp, label) of every snapshot, in one order.

    own: the label's own rows, from the first of `snapshots` to the last.
    """
    moments = ibis.memtable(pa.table({"event_timestamp": pa.array(snapshots, TIME)}))
    found = label.expression(raw) if own else label.expression(raw, moments)
    if missing := {"event_timestamp", "label"} - set(found.columns):
        expected = f"expected columns {', '.join(sorted(missing))}"
        raise DataError(f"a label's rows: {expected}, found {', '.join(found.columns)}")
    if own:
        found = found.filter(found.event_timestamp.between(min(snapshots), max(snapshots)))
    rows = _in_microseconds(found.to_pyarrow())
    keys = [name for name in rows.column_names if name not in {"event_timestamp", "label"}]
    return rows.sort_by([(name, "ascending") for name in ("event_timestamp", *keys)])


def _standing(dataset: Dataset, view: str, raw: Table) -> str:
    """Name of what a view is computed from: expression and DuckDB, the raw table, its version."""
    sql = _sql(dataset.views[view], raw.schema)
    parts = f"{sql} {raw.identity} {PERIOD} {duckdb.__version__}"
    digest = hashlib.sha256(parts.encode()).hexdigest()
    return f"{view}.{digest[:16]}.{raw.version}"


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
            engine.write(dataset.views[view](rows), folder, -sys.maxsize)
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
