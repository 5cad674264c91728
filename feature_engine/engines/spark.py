"""Spark as a compute engine: its executors compute feature views.

Only modules of this package import PySpark. Options that are not set here come from
`spark-defaults.conf` of SPARK_CONF_DIR. Each worker's own environment has the access to S3
(`AWS_*`). The executors read and write the files of tables: see `executors`.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any
from uuid import uuid4

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.expr.operations import DatabaseTable
from upath import UPath

from core.errors import DataError
from core.packages import with_extra
from core.tables.addresses import files_below
from core.tables.commits import AddedFile, added_file
from core.tables.table import Table
from feature_engine.engines.periods import PERIOD_MICROSECONDS

try:
    from ibis.backends.pyspark import Backend
    from py4j.protocol import Py4JJavaError
    from pyspark import cloudpickle
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    from feature_engine.engines import executors
    from feature_engine.engines.job_errors import one_line_errors
except ModuleNotFoundError as exc:
    raise DataError(
        f"GYRE_ENGINE=spark, but there is no {exc.name}: {with_extra('spark')}"
    ) from exc

OPTIONS = {
    # Without this option, a driver that lacks memory hangs.
    "spark.driver.defaultJavaOptions": "-XX:+ExitOnOutOfMemoryError",
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
"""How long the first job waits for a worker."""


def connect(master: str, scratch: UPath) -> "_Connection":
    """Connect to Spark.

    A process has one session, and so one JVM, which ends with the process.

    Args:
        master: Address of Spark's master.
        scratch: Folder that this process and the executors see, for rows on their way between
            them.

    Raises:
        DataError: Spark does not start, or no worker of the master is free.

    """
    options = dict(OPTIONS)
    if master.startswith("local"):
        options |= LOCAL_OPTIONS
        # Executors elsewhere run the `python3` of their PATH.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    is_first = SparkSession.getActiveSession() is None
    builder = SparkSession.builder.master(master).appName("gyre")
    try:
        session = builder.config(map=options).getOrCreate()
    except (PySparkException, Py4JJavaError) as exc:
        remedy = "it needs Java 17 or 21 and a master that answers"
        raise DataError(
            f"Spark did not start at {master}; {remedy}; Spark's own lines have the details"
        ) from exc
    if is_first:
        _wait_for_worker(session, master)
    cloudpickle.register_pickle_by_value(executors)
    connection = _Connection()
    connection.scratch = scratch
    connection.register_options()
    connection.do_connect(session)
    return connection


class _Connection(Backend):  # type: ignore[misc]
    """Ibis's backend for Spark; its executors read the files of tables.

    Attributes:
        scratch: Folder of `connect`.

    """

    scratch: UPath

    def close(self) -> None:
        """Drop temporary tables; the session stays for the next connection."""
        self._session.catalog.clearCache()

    def write_files(
        self, rows: ir.Table, table: Table, first_period: int | None
    ) -> list[AddedFile]:
        """Write feature rows: see `feature_engine.engines.engine.write_files`."""
        period = f"unix_micros(event_timestamp) div {PERIOD_MICROSECONDS}"
        frame = self.frame(rows).selectExpr("*", f"{period} AS period")
        if first_period is not None:
            frame = frame.where(f"period >= {first_period}")
        table.path.mkdir(parents=True, exist_ok=True)
        with one_line_errors():
            files = executors.write_frame(frame, files_below(table.address))
        return [added_file(**file) for file in files]

    def read_files(self, table: Table, names: Sequence[str]) -> ir.Table:
        """Open files of a table; times are instants."""
        return self.read_table(table.address, names, table.stored_schema())

    def read_table(
        self, address: str, names: Sequence[str], schema: pa.Schema
    ) -> ir.Table:
        """Open files of the table at an address, with the columns of a schema."""
        frame = executors.frame_of_files(
            SparkSession.active(), files_below(address), names, schema
        )
        view = ibis.util.gen_name("files")
        frame.createOrReplaceTempView(view)
        return self._view(view, ibis.schema(schema))

    def create_table(self, name: str, /, obj: ir.Table, **_options: Any) -> ir.Table:
        """Have the executors keep computed rows until the connection is closed."""
        self.create_view(name, obj)
        self._session.catalog.cacheTable(name)
        return self._view(name, obj.schema())

    def frame(self, rows: ir.Table) -> Any:
        """Return rows as Spark's DataFrame."""
        name = ibis.util.gen_name("rows")
        self.create_view(name, rows)
        return SparkSession.active().table(name)

    def to_pyarrow(self, expr: ir.Expr, /, **_options: Any) -> Any:
        """Compute rows or a value on the executors."""
        rows = expr.as_table()
        batches = self.to_pyarrow_batches(rows)
        table = pa.Table.from_batches(batches, rows.schema().to_pyarrow())
        return expr.__pyarrow_result__(table)

    def to_pyarrow_batches(
        self, expr: ir.Table, /, **_options: Any
    ) -> Iterator[pa.RecordBatch]:
        """Compute rows on the executors.

        They write files, which this process reads one by one and removes: rows that pass through
        Spark's driver would have to fit into its Java memory.
        """
        columns = expr.schema().to_pyarrow()
        with self.scratch_folder() as address, one_line_errors():
            folder = files_below(address)
            for path in executors.write_rows(self.frame(expr), folder):
                rows = executors.read_rows(path, folder)
                yield from rows.cast(columns).to_batches()

    def use_rows(
        self,
        rows: ir.Table,
        use: Callable[[pa.Table], str],
        modules: Iterable[ModuleType],
    ) -> list[str]:
        """Have the executors use rows, some at a time: see `executors.use_rows`.

        Args:
            rows: Any rows.
            use: See `executors.use_rows`.
            modules: Modules of Gyre that `use` needs; the executors get them by value.

        """
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
        with one_line_errors():
            return executors.use_rows(self.frame(rows), use)

    @contextmanager
    def opened(self, rows: pa.Table) -> Iterator[ir.Table]:
        """Give rows of this process to the executors as files, until the block ends.

        `ibis.memtable` would hold the rows in the Java memory of Spark's driver.
        """
        with self.scratch_folder() as address:
            folder = files_below(address)
            names = [
                executors.save_rows(batch, folder)
                for batch in rows.to_batches(executors.BATCH_ROWS)
            ]
            yield self.read_table(address, names, rows.schema)

    @contextmanager
    def scratch_folder(self) -> Iterator[str]:
        """Give the address of an empty folder, which is removed in the end."""
        folder = self.scratch / str(uuid4())
        folder.mkdir(parents=True)
        try:
            yield str(folder)
        finally:
            with suppress(
                FileNotFoundError
            ):  # on S3, a folder without files does not exist
                folder.fs.rm(folder.path, recursive=True)

    def _view(self, name: str, schema: ibis.Schema) -> ir.Table:
        return DatabaseTable(name=name, schema=schema, source=self).to_expr()

    # Private, as Ibis goes through pandas, where whole numbers in a column with nulls become nulls.
    def _register_in_memory_table(self, op: Any) -> None:
        rows = op.data.to_pyarrow(op.schema)
        frame = SparkSession.active().createDataFrame(rows)
        frame.createOrReplaceTempView(op.name)


def _wait_for_worker(session: SparkSession, master: str) -> None:
    """Run a first job until a worker takes it; cancel it after WORKER_SECONDS.

    Raises:
        DataError: No worker took the job.

    """
    timer = threading.Timer(WORKER_SECONDS, session.sparkContext.cancelAllJobs)
    timer.start()
    try:
        session.range(1).count()
    except (PySparkException, Py4JJavaError) as exc:
        remedy = (
            "start workers, or see on the master's page which applications hold them"
        )
        raise DataError(
            f"no worker of {master} was free for {WORKER_SECONDS} s: {remedy}"
        ) from exc
    finally:
        timer.cancel()
