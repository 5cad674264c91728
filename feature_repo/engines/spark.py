"""Spark: computes feature views on its executors. No other module of the driver imports PySpark.

Everything else is set in `spark-defaults.conf` of SPARK_CONF_DIR. Each worker's own environment
says how S3 is reached (`AWS_*`). The executors read and write the tables' files, see `executors`.
"""

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.expr.operations import DatabaseTable
from upath import UPath

from core.errors import DataError
from core.storage import S3, AddedFile, Table
from feature_repo.engines import PERIOD_MICROSECONDS

try:
    from ibis.backends.pyspark import Backend
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    from feature_repo.engines import executors
    from feature_repo.engines.job_errors import one_line_errors
except ModuleNotFoundError as exc:
    raise DataError(
        f"GYRE_ENGINE=spark, but there is no {exc.name}: make spark"
    ) from exc

OPTIONS = {
    "spark.log.level": "ERROR",
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(executors.BATCH_ROWS),
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.showConsoleProgress": "false",
}
LOCAL_OPTIONS = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.sql.shuffle.partitions": str(os.cpu_count()),  # Spark's 200 is for clusters
    "spark.ui.enabled": "false",
}
"""Further options of a master on this machine."""
WORKER_SECONDS = 300
"""How long a first job waits for a worker."""


class SparkEngine:
    """Compute engine on Spark; see `DuckDBEngine`.

    A process has one session, and so one JVM, which ends with the process.

    Args:
        master: Address of the master, as Spark has it.
        scratch: Folder that this process and the executors see, for rows on their way from
            these to that.

    Raises:
        DataError: Spark does not start, or no worker of the master is free.

    """

    def __init__(self, master: str, scratch: UPath) -> None:
        options = dict(OPTIONS)
        if master.startswith("local"):
            options |= LOCAL_OPTIONS
        # Spark plans the data source with the `python3` of PATH.
        programs = str(Path(sys.executable).parent)
        path = os.environ.get("PATH", "")
        if not path.startswith(programs):
            os.environ["PATH"] = os.pathsep.join((programs, path))
        is_first = SparkSession.getActiveSession() is None
        builder = SparkSession.builder.master(master).appName("gyre")
        try:
            self._session = builder.config(map=options).getOrCreate()
        except PySparkException as exc:
            remedy = "it needs Java 17 or 21, which `make spark` installs"
            raise DataError(
                f"Spark did not start at {master}; {remedy}: {exc}"
            ) from exc
        if is_first:
            _wait_for_worker(self._session, master)
        executors.register(self._session)
        self.connection = _Connection()
        self.connection.scratch = scratch
        self.connection.register_options()
        self.connection.do_connect(self._session)

    def temporary_table(self, rows: ir.Table) -> ir.Table:
        """Return `rows`, which Spark computes wherever they are used."""
        return rows

    def write(
        self, rows: ir.Table, table: Table, first_period: int | None
    ) -> list[AddedFile]:
        period = f"unix_micros(event_timestamp) div {PERIOD_MICROSECONDS}"
        frame = self.connection.frame(rows).selectExpr("*", f"{period} AS period")
        if first_period is not None:
            frame = frame.where(f"period >= {first_period}")
        table.path.mkdir(parents=True, exist_ok=True)
        with one_line_errors():
            files = executors.write_frame(frame, str(table.path), S3)
        return [AddedFile(**file) for file in files]

    def close(self) -> None:
        """Leave the session to the next engine."""


class _Connection(Backend):  # type: ignore[misc]
    """Ibis's backend, whose executors read the files of tables.

    Attributes:
        scratch: See `SparkEngine`.

    """

    scratch: UPath

    def read_files(self, table: Table, names: Sequence[str]) -> ir.Table:
        """Open some files of a table; times are instants."""
        return self.read_table(str(table.path), names, table.stored_schema())

    def read_table(
        self, address: str, names: Sequence[str], schema: pa.Schema
    ) -> ir.Table:
        """Open some files of the table at an address, with columns of a schema."""
        frame = executors.frame_of_files(
            session=SparkSession.active(),
            address=address,
            files=names,
            schema=schema,
            storage_options=S3,
        )
        view = ibis.util.gen_name("files")
        frame.createOrReplaceTempView(view)
        columns = ibis.Schema.from_pyarrow(schema)
        return DatabaseTable(name=view, schema=columns, source=self).to_expr()

    def frame(self, rows: ir.Table) -> Any:
        """Return rows as Spark's DataFrame."""
        name = ibis.util.gen_name("rows")
        self.create_view(name, rows)
        return SparkSession.active().table(name)

    def to_pyarrow(self, expr: ir.Expr, /, **_options: Any) -> Any:
        """Compute rows or a value on the executors.

        They write files, which this process reads and removes: what passes through Spark's driver
        would have to fit into its Java memory.
        """
        rows = expr.as_table()
        columns = rows.schema().to_pyarrow()
        folder = self.scratch / str(uuid4())
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with one_line_errors():
                paths = executors.write_rows(self.frame(rows), str(folder), S3)
            table = columns.empty_table()
            if paths:
                table = executors.read_rows(str(folder), paths, S3).cast(columns)
        finally:
            with suppress(FileNotFoundError):
                folder.fs.rm(folder.path, recursive=True)
        return expr.__pyarrow_result__(table)

    # Private: Ibis goes through pandas, where whole numbers beside nulls become nulls.
    def _register_in_memory_table(self, op: Any) -> None:
        rows = op.data.to_pyarrow(op.schema)
        frame = SparkSession.active().createDataFrame(rows)
        frame.createOrReplaceTempView(op.name)


def _wait_for_worker(session: SparkSession, master: str) -> None:
    """Run a first job, which waits until a worker takes it; cancel it after a while.

    Raises:
        DataError: No worker took it.

    """
    timer = threading.Timer(WORKER_SECONDS, session.sparkContext.cancelAllJobs)
    timer.start()
    try:
        session.range(1).count()
    except (PySparkException, Py4JJavaError) as exc:
        remedy = "start workers, or see on its page which applications hold them"
        raise DataError(
            f"no worker of {master} was free for {WORKER_SECONDS} s: {remedy}"
        ) from exc
    finally:
        timer.cancel()
