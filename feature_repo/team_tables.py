"""Tables that a team keeps: Gyre reads them, and never writes."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.connectors.addresses import is_url
from core.connectors.exact_values import judge_column
from core.connectors.reading import parts_of, read, reading
from core.connectors.texts import TIME
from core.errors import DataError
from core.project import PROJECT

UTC_MICROSECONDS = "timestamp('UTC', 6)"
"""Type of times that Feast's DuckDB store wants."""
MOST_LEFT_OUT = 19
"""Number of rows that may be left out of a small table, as an ingest sets aside as many."""
log = logging.getLogger(__name__)


def in_types(
    rows: pa.Table,
    kinds: Mapping[str, pa.DataType],
    *,
    identities: Collection[str],
    required: Collection[str],
    place: str,
) -> pa.Table:
    """Return the rows whose values fit types, in these types.

    The others are left out, as an ingest sets them aside; the log has their number, the columns,
    and a value of each.

    Args:
        rows: Rows of a table.
        kinds: Type of some columns, by name.
        identities: Columns in which different texts have to stay different: 007 is not 7.
        required: Columns in which a row needs a value.
        place: The table's name, for people.

    Raises:
        DataError: A column is missing, or no value of it fits; or at least 20 rows, and more than
            1 %, do not fit.

    """
    problems = []
    is_useless = False
    is_left_out = pa.array([False] * rows.num_rows)
    for name, kind in kinds.items():
        wanted = "times" if kind == TIME else kind
        problem = f"{name}: expected {wanted}, found"
        if name not in rows.column_names:
            problems.append(f"{problem} no such column")
            is_useless = True
            continue
        column = rows[name].combine_chunks()
        judged = judge_column(column, kind, is_identity=name in identities)
        if judged is None:
            problems.append(f"{problem} {column.type}")
            is_useless = True
            continue
        if name in required and column.null_count:
            problems.append(f"{problem} rows without a value")
            is_left_out = pc.or_(is_left_out, column.is_null())
        lost_values = column.filter(judged.is_lost)
        if len(lost_values):
            example = lost_values.to_numpy(zero_copy_only=False)[0]
            problems.append(f"{problem} {column.type}: {str(example)!r}")
            is_left_out = pc.or_(is_left_out, judged.is_lost)
            is_useless |= len(lost_values) == len(column) - column.null_count
        rows = rows.set_column(rows.schema.get_field_index(name), name, judged.values)
    if not problems:
        return rows
    left_out_count = is_left_out.true_count
    most = min(max(MOST_LEFT_OUT, rows.num_rows // 100), rows.num_rows - 1)
    words = "; ".join(problems)
    if is_useless or left_out_count > most:
        raise DataError(f"{place}: {words}")
    text = "%s: %d of %d rows are left out: %s"
    log.warning(text, place, left_out_count, rows.num_rows, words)
    return rows.filter(pc.invert(is_left_out))


def open_table(connection: Any, source: str) -> ir.Table:
    """Open the rows of a table; DuckDB reads them.

    Args:
        connection: Ibis' connection to a DuckDB.
        source: See `source` of `[label]`; a relative path begins at the project.

    Raises:
        DataError: There is no such table, or it cannot be read.

    """
    # A spec, which many people read, names a variable in place of a password.
    address = os.path.expandvars(source) if is_url(source) else str(PROJECT / source)
    (first_part, *more_parts) = parts_of(address)
    # DuckDB gives all files the types of the first one, and takes a name for a pattern.
    is_one_file = not more_parts and Path(first_part).is_file()
    if is_one_file and first_part.endswith(".parquet") and not has_magic(first_part):
        with reading(address):
            _require_distinct(pq.read_schema(first_part).names)
            return connection.read_parquet(first_part, hive_partitioning=False)
    table = read(address)
    with reading(address):
        _require_distinct(table.column_names)
    return ibis.memtable(table)


def _require_distinct(names: Sequence[str]) -> None:
    """Raise a DataError where two columns are one for DuckDB, which would read either of them."""
    folded_names: dict[str, str] = {}
    for name in names:
        other = folded_names.setdefault(name.lower(), name)
        if other != name:
            raise DataError(
                f"columns {other} and {name} differ in case alone: rename one"
            )
