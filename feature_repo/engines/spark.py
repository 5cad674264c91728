"""Spark: the compute engine for data that outgrew one machine. No other module imports PySpark.

Everything else is set in `spark-defaults.conf` of SPARK_CONF_DIR. On a cluster the home must be a
folder that every worker sees.
"""

import os
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from core.errors import DataError
from feature_repo.engines import PERIOD_MICROSECONDS

try:
    from ibis.backends.pyspark import Backend
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession
except ModuleNotFoundError as exc:
    raise DataError(f"GYRE_ENGINE=spark, but there is no {exc.name}: make spark") from exc

SESSION_OPTIONS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
}
LOCAL_OPTIONS = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": str(os.cpu_count()),  # Spark's 200 is for clusters
}
"""Further options of a master on this machine."""


class SparkEngine:
    """Compute engine on Spark; see `DuckDBEngine`.

    A process has one session, and so one JVM, which ends with the process.

    Args:
        master: Address of the cluster, as Spark has it.

    """

    def __init__(self, master: str) -> None:
        session = _session(master)
        self.connection = _Connection()
        self.connection.register_options()
        self.connection.do_connect(session)
        self._temporary_tables: list[Any] = []

    def temporary_table(self, rows: ir.Table) -> ir.Table:
        table = rows.cache()
        self._temporary_tables.append(table)
        return table

    def write(self, rows: ir.Table, folder: Path, first_period: int | None) -> None:
        period = f"unix_micros(event_timestamp) div {PERIOD_MICROSECONDS}"
        frame = self.connection.frame(rows).selectExpr("*", f"{period} AS period")
        if first_period is not None:
            frame = frame.where(f"period >= {first_period}")
        # Without the hint, each task writes a file of its own into each period.
        frame = frame.hint("rebalance", "period")
        frame.write.partitionBy("period").mode("append").parquet(str(folder))

    def close(self) -> None:
        """Drop the temporary tables; the session stays for the next engine."""
        for table in self._temporary_tables:
            table.release()


class _Connection(Backend):  # type: ignore[misc]
    """Ibis's backend on Arrow; through pandas, int64 beside nulls would become floats."""

    def frame(self, rows: ir.Table, **options: Any) -> Any:
        """Return an expression as Spark's DataFrame."""
        # Private: it registers tables in memory. It ends when Ibis returns Spark's DataFrames.
        self._run_pre_execute_hooks(rows)
        return SparkSession.active().sql(self.compile(rows, **options))

    def read_parquet(self, path: Any, /, **options: Any) -> ir.Table:
        """Read a path, or a list of paths, as one table."""
        paths = [path] if isinstance(path, str) else path
        frame = SparkSession.active().read.parquet(*paths, **options)
        name = ibis.util.gen_name("parquet")
        frame.createOrReplaceTempView(name)
        return self.table(name)

    def get_schema(self, table_name: str, **location: Any) -> Any:
        """Return a table's schema, in which times are instants.

        Ibis forgets what Spark's TIMESTAMP means in a session of UTC.
        """
        schema = super().get_schema(table_name, **location)
        instant = ibis.dtype("timestamp('UTC')")
        return ibis.schema(
            {
                name: instant if column_type.is_timestamp() else column_type
                for name, column_type in schema.items()
            }
        )

    def to_pyarrow(self, expr: ir.Expr, /, **options: Any) -> Any:
        rows = expr.as_table()
        table = self.frame(rows, **options).toArrow()
        return expr.__pyarrow_result__(table.cast(rows.schema().to_pyarrow()))

    # Private: Ibis registers them by way of pandas. It ends when Ibis does so by way of Arrow.
    def _register_in_memory_table(self, op: Any) -> None:
        rows = op.data.to_pyarrow(op.schema)
        frame = SparkSession.active().createDataFrame(rows)
        frame.createOrReplaceTempView(op.name)


def _session(master: str) -> Any:
    options = dict(SESSION_OPTIONS)
    if master.startswith("local"):
        options |= LOCAL_OPTIONS
    builder = SparkSession.builder.master(master).appName("gyre").config(map=options)
    try:
        return builder.getOrCreate()
    except PySparkException as exc:
        remedy = "it needs Java 17 or 21, which `make spark` installs"
        raise DataError(f"Spark did not start at {master}; {remedy}: {exc}") from exc
