"""Tables that a team keeps: Gyre reads them, and never writes."""

import logging
import os
from collections.abc import Collection, Mapping
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.connectors.addresses import is_url, shown_address
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
        fit = _fit(rows, name, kind, is_identity=name in identities)
        is_unfit = fit.is_lost
        if name in required and pc.any(fit.is_missing).as_py():
            problems.append(f"{_expected(name, kind)} rows without a value")
            is_unfit = pc.or_(is_unfit, fit.is_missing)
        if fit.problem:
            problems.append(f"{_expected(name, kind)} {fit.problem}")
        is_useless |= fit.is_useless
        is_left_out = pc.or_(is_left_out, is_unfit)
        if fit.values is not None:
            position = rows.schema.get_field_index(name)
            rows = rows.set_column(position, name, fit.values)
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


class _Fit(NamedTuple):
    """How the values of a column fit a type.

    Attributes:
        values: The values in the type; None: there is no such column, or it is of another kind.
        is_lost: Whether the type does not hold a value.
        is_missing: Whether a row has no value.
        problem: What was found that does not fit; empty if all values fit.
        is_useless: Whether no value fits.

    """

    values: pa.Array | None
    is_lost: pa.Array
    is_missing: pa.Array
    problem: str
    is_useless: bool


def _fit(rows: pa.Table, name: str, kind: pa.DataType, *, is_identity: bool) -> _Fit:
    nowhere = pa.array([False] * rows.num_rows)
    if name not in rows.column_names:
        return _Fit(None, nowhere, nowhere, "no such column", is_useless=True)
    column = rows[name].combine_chunks()
    judged = judge_column(column, kind, is_identity=is_identity)
    if judged is None:
        return _Fit(None, nowhere, nowhere, str(column.type), is_useless=True)
    is_missing = pc.and_not(judged.values.is_null(), judged.is_lost)
    lost_values = column.filter(judged.is_lost)
    problem = ""
    if len(lost_values):
        example = lost_values.to_numpy(zero_copy_only=False)[0]
        problem = f"{column.type}: {str(example)!r}"
    is_useless = bool(problem) and judged.values.null_count == len(column)
    return _Fit(judged.values, judged.is_lost, is_missing, problem, is_useless)


def _expected(name: str, kind: pa.DataType) -> str:
    wanted = "times" if kind == TIME else kind
    return f"{name}: expected {wanted}, found"


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
            names = pq.read_schema(first_part).names
            rows = connection.read_parquet(first_part, hive_partitioning=False)
        require_distinct(names, shown_address(address))
        return rows
    table = read(address)
    require_distinct(table.column_names, shown_address(address))
    return ibis.memtable(table)


def require_distinct(names: Collection[str], place: str) -> None:
    """Require names that DuckDB tells apart: it does not heed their case.

    Args:
        names: Names of columns, each of them once.
        place: Where the columns are.

    Raises:
        DataError: Two names differ in case alone.

    """
    names_by_fold: dict[bytes, str] = {}
    for name in sorted(names):
        # DuckDB folds letters of ASCII alone, as bytes do.
        folded_name = name.encode().lower()
        other_name = names_by_fold.setdefault(folded_name, name)
        if other_name != name:
            raise DataError(
                f"{place}: {other_name} and {name}: expected names of columns that differ in more "
                "than case, as DuckDB reads both as one: rename one of them"
            )
