"""Spark: the engine of data that one machine has outgrown. The one module that imports PySpark.

What is not set here is Spark's own business: `spark-defaults.conf` in SPARK_CONF_DIR. On a cluster
the home must be a folder that every worker sees.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from core.errors import DataError
from feature_repo.engines import PERIOD_US

try:
    from ibis.backends.pyspark import Backend
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession
except ModuleNotFoundError as exc:
    raise DataError(f"GYRE_ENGINE=spark, but there is no {exc.name}: make spark") from exc

RESULTS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # Nothing but rows may lie in a view's folder: no checksum files, no _SUCCESS.
    "spark.hadoop.fs.file.impl": "org.apache.hadoop.fs.RawLocalFileSystem",
    "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
}
LOCAL = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": str(os.cpu_count()),  # Spark's 200 is for clusters
}


class SparkEngine:
    """See `DuckDBEngine`. One session, and so one JVM, serves the process and ends with it."""

    def __init__(self, master: str) -> None:
        self.connection = _Connection()
        self.connection.register_options()
        self.connection.do_connect(_session(master))
        self._held = list[Any]()

    def hold(self, rows: ir.Table) -> ir.Table:
        self._held.append(rows.cache())
        return self._held[-1]

    def write(self, rows: ir.Table, folder: Path, first: int | None) -> None:
        period = f"unix_micros(event_timestamp) div {PERIOD_US}"
        found = self.connection.frame(rows).selectExpr("*", f"{period} AS period")
        # Few files of a period, unless it is big: without the hint, one of each task.
        if first is not None:
            found = found.where(f"period >= {first}")
        found = found.hint("rebalance", "period")
        found.write.partitionBy("period").mode("append").parquet(str(folder))

    def close(self) -> None:
        """Let go of what is held; the session is left to whoever is next."""
        for rows in self._held:
            rows.release()


class _Connection(Backend):  # type: ignore[misc]
    """Ibis's backend on Arrow; on pandas, as it comes, int64 beside nulls goes through floats."""

    def frame(self, rows: ir.Table, **compiled: Any) -> Any:
        """Spark's DataFrame of an expression."""
        # Private: it registers tables in memory. It ends when Ibis returns Spark's DataFrames.
        self._run_pre_execute_hooks(rows)
        return SparkSession.active().sql(self.compile(rows, **compiled))

    def read_parquet(self, path: Any, /, **options: Any) -> ir.Table:
        """Read a path, or a list of them, as one table."""
        name = ibis.util.gen_name("parquet")
        paths = [path] if isinstance(path, str) else path
        frame = SparkSession.active().read.parquet(*paths, **options)
        frame.createOrReplaceTempView(name)
        return self.table(name)

    def get_schema(self, table_name: str, **where: Any) -> Any:
        """Times are instants: Ibis forgets what Spark's TIMESTAMP means in a session of UTC."""
        found = super().get_schema(table_name, **where)
        utc = ibis.dtype("timestamp('UTC')")
        return ibis.schema({n: utc if t.is_timestamp() else t for n, t in found.items()})

    def to_pyarrow(self, expr: ir.Expr, /, **compiled: Any) -> Any:
        rows = expr.as_table()
        found = self.frame(rows, **compiled).toArrow()
        return expr.__pyarrow_result__(found.cast(rows.schema().to_pyarrow()))

    # Private: Ibis registers them by way of pandas. It ends when Ibis does so by way of Arrow.
    def _register_in_memory_table(self, op: Any) -> None:
        rows = op.data.to_pyarrow(op.schema)
        SparkSession.active().createDataFrame(rows).createOrReplaceTempView(op.name)


def _session(master: str) -> Any:
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        raise DataError("GYRE_ENGINE=spark, but there is no java: make spark")
    wanted = RESULTS | (LOCAL if master.startswith("local") else {})
    try:
        return SparkSession.builder.master(master).appName("gyre").config(map=wanted).getOrCreate()
    except PySparkException as exc:
        raise DataError(f"Spark did not start at {master}; Java 17 or 21 is needed: {exc}") from exc
