"""Engines: what computes views, labels and training frames. `GYRE_ENGINE` says which.

Both run the same Ibis expressions over the same parquet files and give the same rows. What is small
by nature stays on DuckDB: batches, their validation, features of the entities of an event.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.types as ir
from ibis.backends.sql.datatypes import DuckDBType

from core.settings import Settings

if TYPE_CHECKING:
    from feature_repo.engines.spark import SparkEngine

PERIOD = timedelta(days=28)
"""Feature rows are cut into periods of event time."""
PERIOD_US = PERIOD // timedelta(microseconds=1)
MEMORY = "4GB"
"""What DuckDB may hold; beyond it, it spills beside the features."""


class DuckDBEngine:
    """The engine of one machine. connection: Ibis, in UTC.

    spill: folder for what exceeds DuckDB's memory.
    """

    def __init__(self, spill: Path | None = None) -> None:
        self.connection = connect()
        if spill:
            limits = f"SET temp_directory = '{spill}'; SET memory_limit = '{MEMORY}'"
            self.connection.raw_sql(f"{limits}; SET preserve_insertion_order = false")

    def hold(self, rows: ir.Table) -> ir.Table:
        """Compute `rows` once; what is returned stands until the engine is closed."""
        return self.connection.create_table(ibis.util.gen_name("held"), rows, temp=True)

    def write(self, rows: ir.Table, folder: Path, first: int | None) -> None:
        """Write feature rows as parquet into `folder/period=N/`, of periods from `first` on.

        first: None for all of them.
        Types are those that Ibis promises; times are microseconds UTC.
        """
        types = {name: DuckDBType.to_string(type_) for name, type_ in rows.schema().items()}
        # DuckDB sums to wider types than Ibis promises.
        columns = [f'CAST("{name}" AS {type_}) AS "{name}"' for name, type_ in types.items()]
        period = f"epoch_us(event_timestamp) // {PERIOD_US}"
        sql = f"SELECT {', '.join(columns)}, {period} AS period"
        sql += f" FROM ({self.connection.compile(rows)})"
        if first is not None:
            sql += f" WHERE {period} >= {first}"
        self.connection.raw_sql(
            f"COPY ({sql}) TO '{folder}' (FORMAT parquet, PARTITION_BY (period),"
            " FILENAME_PATTERN 'rows_{uuid}')"
        )

    def close(self) -> None:
        self.connection.disconnect()


def open_engine(settings: Settings, spill: Path | None = None) -> "DuckDBEngine | SparkEngine":
    """Open the engine of `settings`. spill: where DuckDB may put what exceeds its memory.

    Raises:
        DataError: PySpark or Java is missing, or Spark does not start.

    """
    if settings.engine == "duckdb":
        return DuckDBEngine(spill)
    from feature_repo.engines.spark import SparkEngine  # noqa: PLC0415  (400 MB, a JVM)

    return SparkEngine(settings.spark_master)


def connect(**config: Any) -> Any:
    """DuckDB in UTC."""
    connection = ibis.duckdb.connect(**config)
    connection.raw_sql("SET TimeZone = 'UTC'")
    return connection


@contextmanager
def connected(**config: Any) -> Iterator[Any]:
    """DuckDB for one step."""
    connection = connect(**config)
    try:
        yield connection
    finally:
        connection.disconnect()
