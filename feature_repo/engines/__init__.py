"""Engines: what computes views, labels and training frames. `GYRE_ENGINE` says which.

Both run the same Ibis expressions over the same parquet files and give the same rows, so a home may
change its engine at any time. What is small by nature stays on DuckDB: batches, their validation,
the features of the single entity that an event is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from feature_repo.engines.duckdb import DuckDBEngine

if TYPE_CHECKING:
    from pathlib import Path

    import ibis.expr.types as ir

    from stack.settings import Settings


class Engine(Protocol):
    """connection: Ibis, in UTC; its `read_parquet` takes a list of files or globs."""

    connection: Any

    def hold(self, rows: ir.Table) -> ir.Table:
        """Compute `rows` once; what is returned stands until the engine is closed."""

    def write(self, rows: ir.Table, folder: Path, first: int | None = None) -> None:
        """Write feature rows as parquet into `folder/period=N/`, of periods from `first` on.

        Types are those that Ibis promises; times are microseconds UTC.
        """

    def close(self) -> None: ...


def open_engine(settings: Settings, spill: Path | None = None) -> Engine:
    """Open the engine of `settings`. spill: where DuckDB may put what exceeds its memory.

    Raises:
        DataError: PySpark or Java is missing, or Spark does not start.

    """
    if settings.engine == "duckdb":
        return DuckDBEngine(spill)
    from feature_repo.engines.spark import SparkEngine  # noqa: PLC0415  (400 MB, a JVM)

    return SparkEngine(settings.spark_master)
