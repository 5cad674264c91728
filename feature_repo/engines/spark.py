"""Spark: a second writer of feature views, on this host. No other module imports PySpark.

Everything else is set in `spark-defaults.conf` of SPARK_CONF_DIR.
"""

import os
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow.parquet as pq
from ibis.expr.operations import DatabaseTable

from core.errors import DataError
from feature_repo.engines import PERIOD_MICROSECONDS

try:
    from ibis.backends.pyspark import Backend
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession
except ModuleNotFoundError as exc:
    raise DataError(
        f"GYRE_ENGINE=spark, but there is no {exc.name}: make spark"
    ) from exc

OPTIONS = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.log.level": "ERROR",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": str(os.cpu_count()),  # Spark's 200 is for clusters
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}


class SparkEngine:
    """Compute engine on Spark; see `DuckDBEngine`.

    A process has one session, and so one JVM, which ends with the process.

    Args:
        master: Address of the master, as Spark has it.

    """

    def __init__(self, master: str) -> None:
        builder = SparkSession.builder.master(master).appName("gyre")
        try:
            self._session = builder.config(map=OPTIONS).getOrCreate()
        except PySparkException as exc:
            remedy = "it needs Java 17 or 21, which `make spark` installs"
            raise DataError(
                f"Spark did not start at {master}; {remedy}: {exc}"
            ) from exc
        self.connection = _Connection()
        self.connection.register_options()
        self.connection.do_connect(self._session)

    def temporary_table(self, rows: ir.Table) -> ir.Table:
        """Return `rows`, which Spark computes wherever they are used."""
        return rows

    def write(self, rows: ir.Table, folder: Path, first_period: int | None) -> None:
        name = ibis.util.gen_name("rows")
        self.connection.create_view(name, rows)
        period = f"unix_micros(event_timestamp) div {PERIOD_MICROSECONDS}"
        frame = self._session.table(name).selectExpr("*", f"{period} AS period")
        if first_period is not None:
            frame = frame.where(f"period >= {first_period}")
        # Without the hint, each task writes a file of its own into each period.
        frame = frame.hint("rebalance", "period")
        frame.write.partitionBy("period").mode("append").parquet(str(folder))

    def close(self) -> None:
        """Leave the session to the next engine."""


class _Connection(Backend):  # type: ignore[misc]
    """Ibis's backend, where a list of files is one table and their times are instants."""

    def read_parquet(self, path: list[str], /, **options: Any) -> ir.Table:
        name = ibis.util.gen_name("parquet")
        frame = SparkSession.active().read.parquet(*path, **options)
        frame.createOrReplaceTempView(name)
        schema = ibis.Schema.from_pyarrow(pq.read_schema(path[0]))
        return DatabaseTable(name=name, schema=schema, source=self).to_expr()

    # Private: Ibis goes through pandas, where whole numbers beside nulls become nulls.
    def _register_in_memory_table(self, op: Any) -> None:
        rows = op.data.to_pyarrow(op.schema)
        frame = SparkSession.active().createDataFrame(rows)
        frame.createOrReplaceTempView(op.name)
