"""A view whose rows executors of a cluster write."""

import duckdb
import pyarrow as pa

from core.tables.addresses import files_below
from core.tables.commits import added_file
from core.tables.table import Table
from tests.conftest import new_settings

TIME = pa.timestamp("us", "UTC")
ORDERS = pa.schema(
    {
        "order_id": pa.int64(),
        "customer_id": pa.int64(),
        "event_timestamp": TIME,
        "cents": pa.int64(),
        "note": pa.string(),
    }
)


FEATURES = """
    SELECT customer_id, event_timestamp,
        count(*) OVER earlier AS orders, CAST(sum(cents) OVER earlier AS BIGINT) AS spent
    FROM orders
    WINDOW earlier AS (PARTITION BY customer_id ORDER BY event_timestamp, order_id
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
"""


PERIOD = "unix_micros(event_timestamp) div 2419200000000 AS period"
COLUMNS = pa.schema(
    {
        "customer_id": pa.int64(),
        "event_timestamp": TIME,
        "orders": pa.int64(),
        "spent": pa.int64(),
    }
)


class Shop:
    """A raw table on S3, and the table of its features."""

    def __init__(self, folder, name):
        settings = new_settings(folder / name, data_url=f"s3://gyre/{name}")
        self.raw = Table(settings, "raw/orders", ORDERS)
        self.view = Table(settings, "features/customers", pa.schema([]))

    def computed(self):
        """Rows of the features, by DuckDB."""
        database = duckdb.connect().register("orders", self.raw.read())
        return database.sql(f"{FEATURES} ORDER BY event_timestamp").to_arrow_table()

    def stored(self):
        """Rows of the newest version of the table of features, by DuckDB; columns of files only."""
        rows = duckdb.read_parquet(self.view.files(), hive_partitioning=False)
        return rows.order("event_timestamp").to_arrow_table()

    def read(self, spark):
        from feature_engine.engines import executors  # noqa: PLC0415  (needs PySpark)

        folder = files_below(str(self.raw.path))
        return executors.frame_of_files(spark, folder, self.raw.names(), ORDERS)

    def write(self, spark):
        """Compute the features on the cluster and write their files."""
        from feature_engine.engines import executors  # noqa: PLC0415  (needs PySpark)

        self.read(spark).createOrReplaceTempView("orders")
        rows = spark.sql(FEATURES).selectExpr("*", PERIOD)
        folder = files_below(str(self.view.path))
        files = executors.write_frame(rows, folder)
        return [added_file(**file) for file in files]

    def commit(self, files):
        self.view.commit(files, COLUMNS, within=None, notes={"raw": 1})

    def objects(self):
        """Paths of all parquet files in the folder of the features, whether committed or not."""
        return {path.name for path in self.view.path.glob("period=*/*.parquet")}
