"""DuckDB: the engine of one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ibis
from ibis.backends.sql.datatypes import DuckDBType

from feature_repo.engines.period import PERIOD_US

if TYPE_CHECKING:
    from pathlib import Path

    import ibis.expr.types as ir

MEMORY = "4GB"
"""What DuckDB may hold; beyond it, it spills beside the features."""


class DuckDBEngine:
    """See `Engine`."""

    def __init__(self, spill: Path | None) -> None:
        self.connection = connect(spill)

    def hold(self, rows: ir.Table) -> ir.Table:
        return self.connection.create_table(ibis.util.gen_name("held"), rows, temp=True)

    def write(self, rows: ir.Table, folder: Path, first: int | None = None) -> None:
        types = {name: DuckDBType.to_string(type_) for name, type_ in rows.schema().items()}
        # DuckDB sums to wider types than Ibis promises.
        columns = [f'CAST("{name}" AS {type_}) AS "{name}"' for name, type_ in types.items()]
        period = f"epoch_us(event_timestamp) // {PERIOD_US}"
        sql = f"SELECT {', '.join(columns)}, {period} AS period"
        sql += f" FROM ({self.connection.compile(rows)})"
        if first is not None:
            sql += f" WHERE {period} >= {first}"
        name = f"rows_{folder.stem.rpartition('.')[2]}_{{i}}"
        self.connection.raw_sql(
            f"COPY ({sql}) TO '{folder}' (FORMAT parquet, PARTITION_BY (period),"
            f" FILENAME_PATTERN '{name}')"
        )

    def close(self) -> None:
        self.connection.disconnect()


def connect(spill: Path | None = None) -> Any:
    """DuckDB; with `spill`, a folder, what exceeds MEMORY goes there."""
    connection = ibis.duckdb.connect()
    connection.raw_sql("SET TimeZone = 'UTC'")
    if spill:
        connection.raw_sql(f"SET temp_directory = '{spill}'; SET memory_limit = '{MEMORY}'")
        connection.raw_sql("SET preserve_insertion_order = false")
    return connection
