"""Raw rows that views cannot be computed from, such as one whose amount is beyond its decimals.

One such row would keep the views of all entities from being computed. So rows are tried before they
land, together with the rows of their entities that the table holds.
"""

from typing import Any

import ibis
import ibis.expr.types as ir

from core.errors import BatchRejectedError
from core.tables.table import Table
from feature_engine.engines.duckdb_engine import typed_columns
from feature_engine.engines.engine import VALUE_ERRORS, value_error
from feature_engine.offline.raw import open_raw
from feature_repo.definition import OWN_PREFIX, POSITION, Dataset

REPLACED_BY = f"{OWN_PREFIX}replaced_by"
"""Column of a stored row: the position of the row that has its key."""
MOST_FAULTS = 1_000
"""Largest number of faults that are searched: finding one takes about twenty queries."""


def find_faults(
    dataset: Dataset,
    connection: Any,
    rows: ir.Table,
    raw: Table | None = None,
    exempt_count: int = 0,
) -> dict[int, str]:
    """Find the rows that views cannot be computed from.

    A row is at fault if the views can be computed with the rows before it, and not with it. Where
    they cannot be computed from rows that the table holds, no row is at fault.

    Args:
        dataset: The dataset of the rows.
        connection: Connection to DuckDB.
        rows: Raw rows, with POSITION from 0 on.
        raw: The table that the rows would be merged into; None if there are no other rows.
        exempt_count: Number of the rows that do not count for the limit.

    Returns:
        View and reason, by the position of the row.

    Raises:
        BatchRejectedError: At least 20 rows, and more than 1 % of them or 1,000, are at fault.

    """
    row_count = rows.count().execute()
    if not row_count:
        return {}
    limit = exempt_count + min(max(19, row_count // 100), MOST_FAULTS)
    tried_rows = rows.mutate(
        superseded=ibis.null("string"), **{REPLACED_BY: ibis.null("int64")}
    )
    if raw is not None and raw.exists:
        stored_rows = _stored_rows(dataset, connection, rows, raw)
        stored_rows = stored_rows.select(tried_rows.columns)
        tried_rows = tried_rows.union(stored_rows.cast(tried_rows.schema()))
    tried_rows = connection.create_table("tried_rows", tried_rows, temp=True)
    search = _Search(dataset, connection, tried_rows, limit)
    last_position = tried_rows[POSITION].max().to_pyarrow().as_py()
    search.run(0, last_position + 1)
    return search.faults


class _Search:
    """The search for rows at fault, among rows with POSITION and stored rows without.

    Attributes:
        faults: See `find_faults`.

    """

    def __init__(
        self, dataset: Dataset, connection: Any, rows: ir.Table, limit: int
    ) -> None:
        self.faults: dict[int, str] = {}
        self._dataset = dataset
        self._connection = connection
        self._rows = rows
        self._limit = limit
        self._queries = {}
        merged_rows = connection.create_view("merged_rows", rows)
        for name, expression in dataset.views.items():
            view = expression(merged_rows)
            values = f"SELECT {typed_columns(view)} FROM ({connection.compile(view)})"  # noqa: S608
            # All columns are computed, and nothing is kept.
            self._queries[name] = f"SELECT bit_xor(hash(v)) FROM ({values}) AS v"  # noqa: S608

    def run(self, start: int, end: int) -> None:
        """Find the faults among some positions; the faults before them are found already."""
        problem = self._problem(start, end)
        middle = (start + end) // 2
        if problem is None:
            return
        if middle > start:
            self.run(start, middle)
            self.run(middle, end)
            return
        self.faults[start] = problem
        if self._problem(start, end):  # without it, too: a stored row is at fault
            del self.faults[start]
        if len(self.faults) > self._limit:
            row = self._rows.filter(self._rows[POSITION] == start).to_pyarrow()
            raise BatchRejectedError(
                f"{self._dataset.name}: nothing was changed: {problem}, nor from {self._limit} other "
                f"rows, such as {row.select(self._dataset.schema.names).to_pylist()}; correct them "
                "at the source, or the expression; or add a rule that sets them aside"
            )

    def _problem(self, start: int, end: int) -> str | None:
        """Return which view cannot be computed for the entities of some positions; None: all can."""
        rows = self._rows
        entity = self._dataset.entity
        position = rows[POSITION].fill_null(rows[REPLACED_BY])
        concerned = rows.filter(position.between(start, end - 1))
        entities = concerned.select(entity).distinct()
        is_concerned = rows[entity].identical_to(entities[entity])
        is_accepted = (position < end) & ~position.isin([*self.faults])
        # A stored row stays unless the row that replaces it is accepted.
        is_merged = rows[POSITION].notnull() == is_accepted.fill_null(False)  # noqa: FBT003
        merged_rows = rows.filter(is_merged).semi_join(entities, is_concerned)
        self._connection.create_view("merged_rows", merged_rows, overwrite=True)
        for view, query in self._queries.items():
            try:
                self._connection.con.execute(query).fetchone()
            except VALUE_ERRORS as exc:
                return f"{view} cannot be computed: {value_error(exc)}"
        return None


def _stored_rows(
    dataset: Dataset, connection: Any, rows: ir.Table, raw: Table
) -> ir.Table:
    """Return the table's rows of all entities that some rows belong to, or belonged to before."""
    stored = open_raw(connection, raw)
    key = list(dataset.key)
    replaced = stored.semi_join(rows, key)
    entities = rows.select(dataset.entity).union(replaced.select(dataset.entity))
    positions = rows.select(*key, **{REPLACED_BY: POSITION})
    concerned = stored.semi_join(entities, dataset.entity)
    return concerned.left_join(positions, key).mutate({POSITION: ibis.null("int64")})
