"""Feature engine: Ibis expressions over the raw tables, each view a Delta table of its own.

The commit of a view's rows notes what they stand on: the expression and the version of the raw
table. Rows are cut into periods of event time. In the periods from the earliest change on, rows of
changed entities are computed anew and all others copied; files of earlier periods stay.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from core.errors import DataError
from core.files import reached, read_file, replace_file
from core.settings import Settings
from core.storage import Table
from core.timestamps import BEGINNING
from feature_repo.definition import Dataset, Expression, Label
from feature_repo.engines import PERIOD, connect, connected, open_engine

TIME = pa.timestamp("us", tz="UTC")
DIGITS = 15
"""Of a hash in hexadecimal: what a Delta table can note, 60 bits."""
LAST_PERIOD = 2**31
"""After every row that there is."""


def raw_table(settings: Settings, dataset: Dataset) -> Table:
    """The dataset's rows as they became known: source columns, `ingested_at` and `superseded`.

    superseded: of an event that corrected a row that row as JSON. The source may still deliver it:
    it is no news.
    """
    arrival = [pa.field("ingested_at", TIME), pa.field("superseded", pa.string())]
    return Table(settings, f"raw/{dataset.name}", pa.schema([*dataset.schema, *arrival]))


class Standing(NamedTuple):
    """What rows of a view stand on.

    definition: hash of the expression, of DuckDB's version and of which raw table it is.
    raw: the version of the raw table.
    """

    definition: int
    raw: int


def view_address(settings: Settings, view: str) -> str:
    """Return the place of a view's table: a folder, or `s3://…`."""
    return str(_view_table(settings, view).path)


def view_files(settings: Settings, view: str) -> list[str]:
    """Return the parquet files of the newest version of a view, on this disk."""
    return _view_table(settings, view).files()


def written_views(settings: Settings) -> list[str]:
    """Return the names of the views that have rows."""
    logs = (settings.data / "features").glob("*/_delta_log")
    return sorted(log.parent.name for log in logs)


def purge_view(settings: Settings, view: str) -> None:
    """Remove the rows that readers of before may still read: they fail."""
    _view_table(settings, view).purge()


def write_views(settings: Settings, dataset: Dataset, raw: Table) -> None:
    """Bring every view of `dataset` to the newest version of its raw table, each in one commit.

    Raises:
        DataError: the raw table is empty, so there is nothing to compute from.

    """
    if raw.version < 0:
        raise DataError(f"{dataset.name}: no rows yet; check the source")
    for name in dataset.views:
        if _standing(settings, name) != _wanted(dataset, name, raw):
            _write(settings, dataset, name, raw)


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
    found = []
    for name in dataset.views:
        standing = _standing(settings, name)
        if standing is None or standing.definition != _wanted(dataset, name, raw).definition:
            found.append(name)
    return found


def news(settings: Settings, dataset: Dataset, raw: Table) -> pa.Table | None:
    """Raw rows that came or went (`gone`) since `note_online`; None if that cannot be told."""
    found = [raw.schema.append(pa.field("gone", pa.bool_())).empty_table()]
    for name in dataset.views:
        wanted = _wanted(dataset, name, raw)
        with connected() as connection:
            changed = _changed(connection, raw, _standing_online(settings, name), wanted)
            if changed is None:
                return None
            found.append(changed.to_pyarrow().cast(found[0].schema))
    return pa.concat_tables(found)


def forget_online(settings: Settings, dataset: Dataset) -> None:
    """Forget which raw version the online store was filled from, before all is written anew."""
    for name in dataset.views:
        with reached(name), suppress(FileNotFoundError):
            _online_note(settings, name).unlink()


def note_online(settings: Settings, dataset: Dataset) -> None:
    """Remember the expression and the raw version that the online store was filled from."""
    for name in dataset.views:
        standing = _standing(settings, name)
        if standing is not None:
            with reached(name):
                replace_file(_online_note(settings, name), f"{standing.definition} {standing.raw}")


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


def _view_table(settings: Settings, view: str) -> Table:
    """Return the table of a view: files of rows, whose columns the view's expression says."""
    return Table(settings, f"features/{view}", pa.schema([]))


def _standing(settings: Settings, view: str) -> Standing | None:
    """Return what the rows of a view stand on; None where there are none yet."""
    notes = _view_table(settings, view).noted(Standing._fields)
    definition, raw = notes["definition"], notes["raw"]
    return None if definition is None or raw is None else Standing(definition, raw)


def _wanted(dataset: Dataset, view: str, raw: Table) -> Standing:
    """Return what the rows of a view would stand on now."""
    sql = _sql(dataset.views[view], raw.schema)
    parts = f"{sql} {raw.identity} {PERIOD} {duckdb.__version__}"
    digest = hashlib.sha256(parts.encode()).hexdigest()
    return Standing(int(digest[:DIGITS], 16), raw.version)


def _online_note(settings: Settings, view: str) -> UPath:
    return settings.data / "features" / f"{view}.online"


def _standing_online(settings: Settings, view: str) -> Standing | None:
    """Return what the rows stood on that the online store was filled from; None if unknown."""
    with reached(view):
        try:
            definition, raw = read_file(_online_note(settings, view)).split()
        except FileNotFoundError:
            return None
    return Standing(int(definition), int(raw))


@cache
def _sql(expression: Expression, schema: pa.Schema) -> str:
    unbound = ibis.table(ibis.Schema.from_pyarrow(schema), name="raw")
    sql = str(ibis.to_sql(expression(unbound), dialect="duckdb", pretty=False))
    # Ibis keeps the columns of `drop` in a set, whose order is another in each process.
    return re.sub(r"EXCLUDE \(([^)]*)\)", lambda found: str(sorted(found[1].split(", "))), sql)


def _changed(
    connection: Any, raw: Table, known: Standing | None, wanted: Standing
) -> ir.Table | None:
    """Rows that came or went (`gone`) between two standings; None if that cannot be told."""
    if known is None or known.definition != wanted.definition:
        return None
    files = raw.changed_files(known.raw, wanted.raw)
    if files is None:
        return None
    none = open_raw(raw, wanted.raw, connection=connection).limit(0)
    added, removed = (
        (connection.read_parquet(paths) if paths else none).select(raw.schema.names)
        for paths in files
    )
    # Files that went mostly hold what files that came hold too: a merge copies, so does compaction.
    came = added.difference(removed, distinct=False) if files[1] else added
    gone = removed.difference(added, distinct=False) if files[1] else removed
    return came.mutate(gone=False).union(gone.mutate(gone=True))


def _write(settings: Settings, dataset: Dataset, view: str, raw: Table) -> None:
    """Write the rows of `view` as they are now; files of periods before a change stay."""
    table, wanted = _view_table(settings, view), _wanted(dataset, view, raw)
    scratch = settings.cache / f"{view}.refresh"
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed one left
    fresh, spill = scratch / "rows", scratch / "spill"
    fresh.mkdir(parents=True)
    within = None
    with closing(open_engine(settings, spill)) as engine:
        rows = open_raw(raw, wanted.raw, connection=engine.connection)
        new = dataset.views[view](rows)
        changed = _changed(engine.connection, raw, _standing(settings, view), wanted)
        first = None
        if changed is not None:
            touched = engine.hold(changed)
            earliest = touched[dataset.event_time].min().to_pyarrow().as_py()
            first = (earliest - BEGINNING) // PERIOD if earliest else LAST_PERIOD
            within = f"period >= {first}"
            new = dataset.views[view](rows.semi_join(touched, dataset.entity))
            again = table.files(within=within)
            if again:
                known = engine.connection.read_parquet(again).anti_join(touched, dataset.entity)
                new = new.union(known.select(new.columns).cast(new.schema()))
        engine.write(new, fresh, first)
        columns = new.schema().to_pyarrow().append(pa.field("period", pa.int64()))
    table.replace_files(fresh, columns, "period", within, wanted._asdict())
    shutil.rmtree(scratch)


def _in_microseconds(rows: pa.Table) -> pa.Table:
    """Feast's DuckDB store wants microsecond UTC timestamps."""
    fields = [f.with_type(TIME) if pa.types.is_timestamp(f.type) else f for f in rows.schema]
    return rows.cast(pa.schema(fields))
