"""Sources in warehouses: Snowflake by fakesnow, BigQuery and Trino by the queries they would get.

fakesnow answers the real client of Snowflake, and keeps rows in DuckDB. What it does not carry
stands in the last tests of Snowflake: they fail as soon as it does.
"""

import socket
import subprocess
from contextlib import closing, suppress
from datetime import UTC, date, datetime, timedelta

import ibis
import pytest
import sqlglot
from sqlglot import exp

from core.connectors.databases import later_rows
from core.connectors.formats import Later
from core.connectors.reading import read
from core.errors import DataError
from core.packages import missing_client
from core.project import CLONE
from feature_engine.ingest.pipeline import ingest
from feature_engine.ingest.source import pull
from feature_engine.offline.raw import raw_table
from tests.conftest import AS_OF, new_settings, running, unused_port, wait_until
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS

ENVIRONMENT = ".venv-fakesnow"
CONNECTION = """
[{name}]
account = "fakesnow"
user = "gyre"
password = "secret"
host = "127.0.0.1"
port = {port}
protocol = "http"
database = "SHOP"
schema = "SALES"
"""
WITHOUT_SESSION = """
[shop.session_parameters]
nop_regexes = ["^ALTER SESSION"]
"""
"""fakesnow's own way to leave statements out."""
ADDRESS = "snowflake://?connection_name=shop"
BIG = 2**53 + 1
"""A whole number that no double holds."""
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


class Warehouse:
    """A fakesnow with a database, and what was sent to it."""

    def __init__(self, connection, log):
        self.connection = connection
        self.log = log

    def run(self, statement):
        with self.connection.cursor() as cursor:
            return cursor.execute(statement).fetchall()

    def create_orders(self, name, time_type):
        self.run(
            f'CREATE OR REPLACE TABLE {name} ("order_id" NUMBER(38,0), "customer_id" NUMBER(10,0),'
            f' "order_ts" {time_type}, "number_of_cds" NUMBER(5,0), "dollar_value" NUMBER(10,2))'
        )

    def sell(self, name, number, time):
        values = f"{number}, {number % 5 + 1}, '{time}', 1, 9.99"
        self.run(f"INSERT INTO {name} VALUES ({values})")

    def statements(self):
        return self.log.read_text().split(";\n")


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    """The client reads the folder of its connections once a process, when it is imported."""
    command = ["make", "--silent", f"{ENVIRONMENT}/gyre.stamp"]
    subprocess.run(command, cwd=CLONE, check=True)
    folder = tmp_path_factory.mktemp("snowflake")
    log = folder / "fakesnow.log"
    port = unused_port()
    file = folder / "connections.toml"
    connections = [CONNECTION.format(name=name, port=port) for name in ("all", "shop")]
    file.write_text("".join([*connections, WITHOUT_SESSION]))
    file.chmod(0o600)

    def answers():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    server = [str(CLONE / ENVIRONMENT / "bin" / "fakesnow"), "-s", "-p", str(port)]
    with (
        pytest.MonkeyPatch.context() as patch,
        running(server, log, FAKESNOW_DEBUG="snowflake") as process,
    ):
        patch.setenv("SNOWFLAKE_HOME", str(folder))
        import snowflake.connector  # noqa: PLC0415  (see above)

        wait_until("fakesnow", answers, process=process)
        # Who connects to a database and a schema creates them there.
        with closing(snowflake.connector.connect(connection_name="shop")) as connection:
            yield Warehouse(connection, log)


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path / "home", sources={"orders": f"{ADDRESS}#ORDERS"})


def compared_column(query, dialect):
    """Return the column that a query compares: the column itself, not a function of it."""
    where = sqlglot.parse_one(query, read=dialect).find(exp.Where)
    (comparison,) = where.find_all(exp.GT, exp.GTE)
    assert isinstance(comparison.left, exp.Column)
    assert not [*comparison.right.find_all(exp.Column)]
    (null,) = where.find_all(exp.Is)
    assert null.this == comparison.left
    return comparison.left.name


@pytest.mark.parametrize("column", ["with_zone", "without_zone", "day"])
@pytest.mark.parametrize("dialect", ["bigquery", "snowflake", "trino"])
def test_a_query_filters_on_the_column_itself_so_that_partitions_are_pruned(
    dialect, column
):
    schema = {
        "order_id": "int64",
        "with_zone": "timestamp('UTC', 6)",  # BigQuery's TIMESTAMP
        "without_zone": "timestamp(6)",  # BigQuery's DATETIME
        "day": "date",
    }
    orders = ibis.table(schema, name="orders")
    query = ibis.to_sql(later_rows(orders, Later(column, MOMENT)), dialect=dialect)
    assert compared_column(query, dialect) == column


def test_a_missing_client_is_named_as_it_is_installed():
    error = ModuleNotFoundError(name="snowflake.connector")
    assert "install snowflake-connector-python" in missing_client(error)


@pytest.mark.nightly
def test_columns_keep_names_types_and_values(warehouse):
    warehouse.run(
        'CREATE OR REPLACE TABLE kinds (id NUMBER(38,0), "Mixed Case" VARCHAR, "lower" NUMBER(10,0),'
        " price NUMBER(10,2), amount FLOAT, tz TIMESTAMP_TZ, ltz TIMESTAMP_LTZ, ntz TIMESTAMP_NTZ,"
        " day DATE, is_paid BOOLEAN)"
    )
    warehouse.run(
        f"INSERT INTO kinds VALUES ({BIG}, 'ä', NULL, 1.25, 0.5, '2026-01-01T12:00:00+02:00',"
        " '2026-01-01T12:00:00+00:00', '9999-12-31 12:00:00.123456', '2026-01-01', TRUE)"
    )
    times = "'2026-01-01 00:00:00', '2026-01-01 00:00:00', '0001-01-01 00:00:00'"
    warehouse.run(
        f"INSERT INTO kinds VALUES (NULL, NULL, 3, NULL, NULL, {times}, NULL, NULL)"
    )
    table = read(f"{ADDRESS}#KINDS")
    assert {field.name: str(field.type) for field in table.schema} == {
        "ID": "int64",
        "Mixed Case": "string",
        "lower": "int64",
        "PRICE": "decimal128(10, 2)",
        "AMOUNT": "double",
        "TZ": "timestamp[us, tz=UTC]",
        "LTZ": "timestamp[us, tz=UTC]",
        "NTZ": "timestamp[us]",
        "DAY": "date32[day]",
        "IS_PAID": "bool",
    }
    columns = table.to_pydict()
    assert columns["ID"] == [BIG, None]
    assert columns["Mixed Case"] == ["ä", None]
    assert columns["lower"] == [None, 3]
    assert columns["TZ"][0] == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert columns["LTZ"][0] == datetime(2026, 1, 1, 12, tzinfo=UTC)
    last_day = datetime(9999, 12, 31, 12, 0, 0, 123456)  # noqa: DTZ001  (it has no zone)
    assert columns["NTZ"] == [last_day, datetime(1, 1, 1)]  # noqa: DTZ001
    assert columns["DAY"] == [date(2026, 1, 1), None]
    assert columns["IS_PAID"] == [True, None]


@pytest.mark.nightly
def test_a_table_without_times_is_read_by_the_name_of_its_schema(warehouse):
    warehouse.run('CREATE OR REPLACE TABLE plain ("a" NUMBER(38,0))')
    warehouse.run(f"INSERT INTO plain VALUES ({BIG})")
    assert read(f"{ADDRESS}#SALES.PLAIN").to_pylist() == [{"a": BIG}]
    # What the address says goes before what the file of connections says.
    address = "snowflake://gyre:secret@fakesnow/SHOP/SALES?connection_name=shop"
    assert read(f"{address}#PLAIN").to_pylist() == [{"a": BIG}]


@pytest.mark.nightly
def test_a_missing_table_is_named(warehouse):
    with pytest.raises(DataError, match=r"expected a table, found no SALES\.MISSING$"):
        read(f"{ADDRESS}#SALES.MISSING")


@pytest.mark.nightly
def test_reading_creates_nothing_in_the_account(warehouse):
    warehouse.run('CREATE OR REPLACE TABLE plain ("a" NUMBER(38,0))')
    sent = len(warehouse.statements())
    read(f"{ADDRESS}#PLAIN")
    statements = warehouse.statements()[sent:]
    assert statements
    assert not [each for each in statements if "CREATE" in each.upper()]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("time_type", "zone"),
    [
        ("TIMESTAMP_TZ", ""),
        ("TIMESTAMP_LTZ", ""),
        ("TIMESTAMP_NTZ", "Europe/Berlin"),
    ],
)
def test_the_limit_of_a_pull_reaches_the_warehouse(
    warehouse, settings, time_type, zone
):
    warehouse.create_orders("orders", time_type)
    offset = "" if zone else "+00:00"
    for month in range(1, 7):
        warehouse.sell("orders", month, f"2026-{month:02}-15T12:00:00{offset}")
    if zone:
        with pytest.raises(DataError, match="GYRE_TIME_ZONES__ORDERS=Europe/Berlin"):
            pull(settings, ORDERS, AS_OF).read_all()
        settings = settings.model_copy(update={"time_zones": {"orders": zone}})
    since = datetime(2026, 4, 15, 9, tzinfo=UTC)
    sent = len(warehouse.statements())
    rows = pull(settings, ORDERS, AS_OF, since).read_all()
    assert rows["order_id"].to_pylist() == [4, 5, 6]
    # Noon of Berlin's summer is 10:00 UTC.
    hour = 10 if zone else 12
    assert rows["order_ts"][0].as_py() == datetime(2026, 4, 15, hour, tzinfo=UTC)
    queries = [each for each in warehouse.statements()[sent:] if "WHERE" in each]
    (query,) = queries
    query = query[query.index("SELECT") :]
    assert compared_column(query, "snowflake") == "order_ts"
    assert len(pull(settings, ORDERS, AS_OF).read_all()) == 6


@pytest.mark.nightly
def test_ingest_reads_the_newest_rows_and_all_rows_once_a_day(warehouse, applied):
    sources = {"orders": f"{ADDRESS}#ORDERS"}
    settings = applied.model_copy(update={"sources": sources})
    warehouse.create_orders("orders", "TIMESTAMP_TZ")

    def changes(time):
        report = ingest(settings, "orders", time)
        return report.inserted, report.replaced

    for number in range(1, 20):
        warehouse.sell("orders", number, (AS_OF - number * DAY).isoformat())
    warehouse.sell("orders", BIG, (AS_OF - DAY).isoformat())
    assert changes(AS_OF) == (20, 0)
    warehouse.sell("orders", 100, (AS_OF - 5 * DAY).isoformat())
    warehouse.sell("orders", 101, (AS_OF - 15 * DAY).isoformat())
    warehouse.run('UPDATE orders SET "dollar_value" = 5 WHERE "order_id" = 2')
    assert changes(AS_OF + HOUR) == (1, 1)
    assert changes(AS_OF + timedelta(days=1)) == (1, 0)
    stored = raw_table(settings, ORDERS).read().to_pylist()
    assert BIG in {row["order_id"] for row in stored}
    amounts = sorted(row["dollar_value"] for row in stored)
    assert amounts == [5.0, *[9.99] * 21]


@pytest.mark.nightly
def test_names_in_capitals_are_refused_and_a_view_gives_them_others(
    warehouse, settings
):
    warehouse.run(
        "CREATE OR REPLACE TABLE orders (order_id NUMBER(38,0), customer_id NUMBER(10,0),"
        " order_ts TIMESTAMP_TZ, number_of_cds NUMBER(5,0), dollar_value NUMBER(10,2))"
    )
    warehouse.sell("orders", 1, "2026-01-15T12:00:00+00:00")
    with pytest.raises(DataError, match=r"expected the columns .*, found ORDER_ID"):
        pull(settings, ORDERS, AS_OF).read_all()
    columns = ", ".join(f'{name} AS "{name}"' for name in ORDERS.schema.names)
    warehouse.run(f"CREATE OR REPLACE VIEW gyre_orders AS SELECT {columns} FROM orders")
    sources = {"orders": f"{ADDRESS}#GYRE_ORDERS"}
    settings = settings.model_copy(update={"sources": sources})
    assert len(pull(settings, ORDERS, AS_OF).read_all()) == 1


@pytest.mark.nightly
def test_fakesnow_does_not_carry_the_settings_of_a_session(warehouse):
    """Ibis sends several in one statement, and Snowflake takes them."""
    warehouse.run('CREATE OR REPLACE TABLE plain ("a" NUMBER(38,0))')
    with pytest.raises(DataError, match='at or near "SESSION"'):
        read("snowflake://?connection_name=all#PLAIN")


@pytest.mark.nightly
def test_fakesnow_does_not_carry_queries(warehouse, tmp_path):
    """Ibis asks for the columns of a query by a statement that fakesnow cannot parse."""
    file = tmp_path / "orders.sql"
    file.write_text("SELECT 1 AS one")
    with pytest.raises(DataError, match=r"DESCRIBE RESULT LAST_QUERY_ID\(\)"):
        read(f"{ADDRESS}#{file}")


@pytest.mark.nightly
def test_fakesnow_does_not_carry_times_that_are_null(warehouse):
    """It sends them as 1970, to Snowflake's own client too."""
    warehouse.run("CREATE OR REPLACE TABLE times (seen_at TIMESTAMP_TZ)")
    warehouse.run("INSERT INTO times VALUES (NULL)")
    assert warehouse.run("SELECT seen_at FROM times") == [
        (datetime(1970, 1, 1, tzinfo=UTC),)
    ]


@pytest.mark.nightly
def test_fakesnow_does_not_carry_whole_numbers_of_more_than_64_bits(warehouse):
    from snowflake.connector.errors import ProgrammingError  # noqa: PLC0415

    warehouse.run("CREATE OR REPLACE TABLE numbers (number NUMBER(38,0))")
    with pytest.raises(ProgrammingError, match="out of range"):
        warehouse.run(f"INSERT INTO numbers VALUES ({10**20})")


@pytest.mark.nightly
def test_fakesnow_does_not_carry_the_case_of_a_table(warehouse):
    """It describes "plain" as a table without columns; Snowflake has PLAIN alone, and refuses."""
    warehouse.run('CREATE OR REPLACE TABLE plain ("a" NUMBER(38,0))')
    assert read(f"{ADDRESS}#plain").column_names == []
