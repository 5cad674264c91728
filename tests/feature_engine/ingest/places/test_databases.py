"""Every type of a database: its values are what the server's own client shows, or refused by name."""

import csv
import io
import math
import sqlite3
import struct
import subprocess
from contextlib import closing

import duckdb
import psycopg
import pyarrow as pa
import pytest

from core.connectors.formats import Later
from core.connectors.reading import open_part, read
from core.errors import DataError
from feature_engine.ingest.source import pull
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.odd.server_types import (
    MARIADB,
    MARIADB_BYTES,
    OWN_TYPES,
    POSTGRESQL,
)
from tests.support.feature_engine.shop import DAY, ORDERS
from tests.support.stores.mariadb import mariadb  # noqa: F401  (a fixture)
from tests.support.stores.postgres import postgres  # noqa: F401  (a fixture)

GOOD = (1, 1, "2026-11-03 10:00:00+00:00", 2, 9.5)


def values_of(address):
    """Return all values of a table as they come, and what the texts among them stand for."""
    with open_part(address) as rows:
        table = rows.batches.read_all()
        return table, dict(rows.types)


def same(value, shown):
    """Whether a value is what a client shows."""
    if value is None:
        return shown is None
    if isinstance(value, bool):
        return shown == ("t" if value else "f")
    if isinstance(value, int):
        return value == int(shown)
    if isinstance(value, float):
        return value == float(shown) or (math.isnan(value) and math.isnan(float(shown)))
    return value == shown


def sqlite_source(tmp_path, columns, rows):
    file = tmp_path / "shop.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"CREATE TABLE orders ({columns})")
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", rows)
    return new_settings(
        tmp_path / "home", sources={"orders": f"sqlite://{file}#orders"}
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("order_ts", "03/04/2026"),
        ("order_ts", "13/04/2026"),
        ("order_ts", "04-13-2026 10:00"),
        ("order_ts", "Apr 3 2026"),
        ("order_ts", "20261103"),
        ("order_ts", 20261103),
        ("order_ts", 1764000000),
        ("order_ts", 2461000.5),
        ("order_ts", "now"),
        ("order_ts", b"2026-11-03"),
        ("order_ts", "2026-11-03 10:00:00"),  # of which zone?
        ("number_of_cds", "two"),
        ("number_of_cds", 1.5),
        ("number_of_cds", 1e300),
        ("number_of_cds", b"2"),
        ("dollar_value", "9,50"),
        ("dollar_value", float("inf")),
        ("dollar_value", b"\xff"),
    ],
)
@pytest.mark.parametrize(
    "columns",
    [
        "order_id INTEGER, customer_id INT2, order_ts TIMESTAMP, number_of_cds INT, dollar_value REAL",
        "order_id INT, customer_id INT, order_ts DATE, number_of_cds INT, dollar_value DECIMAL(9, 2)",
        "order_id, customer_id, order_ts, number_of_cds, dollar_value",
    ],
)
def test_sqlite_sets_a_row_aside_whose_value_does_not_fit(
    tmp_path, columns, column, value
):
    bad_row = dict(zip(ORDERS.schema.names, GOOD, strict=True)) | {"order_id": 2}
    rows = [GOOD, [*(bad_row | {column: value}).values()]]
    settings = sqlite_source(tmp_path, columns, rows)
    unreadable = {}
    found = pull(settings, ORDERS, AS_OF, unreadable=unreadable).read_all()
    assert found["order_id"].to_pylist() == [1]
    (problem,) = unreadable.values()
    assert problem.startswith(f"column {column}: ")
    shown = f"x'{value.hex()}'" if isinstance(value, bytes) else str(value)
    assert shown.removesuffix(".0") in problem


def test_sqlite_gives_values_exactly_and_texts_that_are_none_are_set_aside(tmp_path):
    file = tmp_path / "odd.db"
    numbers = [2**63 - 1, None, 2**53 + 1, -(2**63)]
    doubles = [0.1, 5e-324, 1e300, None]
    texts = ["007", "", "2026-11-20", None]
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE t (i INTEGER, d DOUBLE, s VARCHAR(9), b BLOB)")
        rows = zip(numbers, doubles, texts, [b"\0", None, b"", b"\xff"], strict=True)
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
    table = read(f"sqlite://{file}#t")
    assert table["i"].to_pylist() == numbers
    assert [str(value) for value in table["d"].to_pylist()] == [
        str(value) for value in doubles
    ]
    assert table["s"].to_pylist() == texts
    assert table["b"].to_pylist() == [b"\0", None, b"", b"\xff"]
    assert [str(kind) for kind in table.schema.types] == [
        "int64",
        "double",
        "string",
        "binary",
    ]
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE t SET s = CAST(x'ff' AS TEXT) WHERE i IS NULL")
    with pytest.raises(DataError, match="column s: string does not hold all its"):
        read(f"sqlite://{file}#t")


def test_a_file_of_sqlite_that_is_not_there_is_not_made(tmp_path):
    file = tmp_path / "no.db"
    with pytest.raises(DataError, match=r"no\.db#t: expected a file of SQLite"):
        read(f"sqlite://{file}#t")
    assert not file.exists()


def test_sqlite_leaves_out_earlier_days_and_no_row_whose_time_it_does_not_know(
    tmp_path,
):
    times = [
        f"{AS_OF - DAY:%Y-%m-%d}T00:00:00-05:00",
        "2025-01-01 10:00:00Z",
        "03/04/2026",
        None,
    ]
    rows = [(number, 1, time, 1, 1.0) for number, time in enumerate(times)]
    columns = "order_id INT, customer_id INT, order_ts TIMESTAMP, number_of_cds INT, dollar_value"
    settings = sqlite_source(tmp_path, columns, rows)
    with open_part(
        settings.sources["orders"], later=Later("order_ts", AS_OF - DAY)
    ) as part:
        assert part.batches.read_all()["order_id"].to_pylist() == ["0", "2", "3"]


QUERIES = [
    "SELECT 1 AS a -- note",
    "SELECT 1 AS a; -- note; another",
    "SELECT 1 AS a /* ; */ ;;\n-- end\n",
    "-- begin; here\nSELECT 1 AS a",
    "WITH rows_of AS (SELECT 1 AS a) SELECT * FROM rows_of; -- note",
    "SELECT 1 AS a WHERE ';--' = ';--' -- it's",
    "SELECT 1 AS a WHERE '100%s' LIKE '100%'\n;\n",
    "SELECT 1 AS a UNION SELECT 1 ORDER BY 1 -- note",
]


def check_queries(tmp_path, address, more=()):
    for number, query in enumerate([*QUERIES, *more]):
        file = tmp_path / f"{number}.sql"
        file.write_text(query)
        assert read(f"{address}#{file}").to_pylist() == [{"a": 1}], query
    file.write_text("SELECT 1 AS a; SELECT 2 AS a")
    with pytest.raises(DataError, match="expected one query, found several"):
        read(f"{address}#{file}")


def test_queries_are_left_as_they_are_in_sqlite_and_duckdb(tmp_path):
    sqlite3.connect(tmp_path / "a.db").close()
    odd = "SELECT printf('%d', 1) + 0 AS a WHERE '2' || 1 = '21' AND 7 / 2 = 3"
    check_queries(tmp_path, f"sqlite://{tmp_path}/a.db", [odd])
    duckdb.connect(str(tmp_path / "a.ddb")).close()
    odd = "FROM (SELECT 1 AS a) WHERE 7 // 2 = 3 AND strftime(DATE '2026-11-20', '%j') = '324'"
    check_queries(tmp_path, f"duckdb://{tmp_path}/a.ddb", [odd])


@pytest.mark.journey
def test_queries_are_left_as_they_are_in_postgresql(tmp_path, postgres):
    more = [
        "SELECT 1 AS a WHERE to_char(DATE '2026-11-20', 'IW IYYY DDD') = '47 2026 324'",
        "SELECT 1 AS a WHERE '{\"k\": null}'::jsonb ? 'k' AND 'a' ~ '^[a]$' -- jsonb",
        "SELECT count(*)::int AS a FROM generate_series('2026-11-20'::date, '2026-11-20', '1 day')",
        "SELECT 1 AS a WHERE extract(dow FROM DATE '2026-11-20') = 5 AND log(100) = 2",
        "SELECT a FROM (VALUES (1)) AS v(a) WHERE $x$;--$x$ = ';--' /* a /* b */ ; */",
        "SELECT a FROM unnest(ARRAY[1]) WITH ORDINALITY AS v(a, b) WHERE E'\\x41' = 'A'",
    ]
    check_queries(tmp_path, postgres.address, more)


@pytest.mark.journey
def test_queries_are_left_as_they_are_in_mariadb(tmp_path, mariadb):
    more = [
        "SELECT 1 AS a # a note; here",
        "SELECT /*! 1 */ AS a WHERE 'it\\'s;' = \"it's;\"",
        "SELECT 1 AS `a` FROM dual WHERE DATE_FORMAT('2026-11-20', '%j %v') = '324 47'",
    ]
    check_queries(tmp_path, mariadb.address, more)


@pytest.mark.journey
def test_a_query_of_a_user_who_may_only_read_names_the_grant(tmp_path, mariadb):
    mariadb.run(
        "USE gyre; CREATE OR REPLACE TABLE seen (a int); INSERT INTO seen VALUES (1); "
        "CREATE OR REPLACE USER reader@'127.0.0.1' IDENTIFIED BY 'secret'; "
        "GRANT SELECT ON gyre.* TO reader@'127.0.0.1'"
    )
    address = mariadb.address.replace("gyre:secret", "reader:secret")
    file = tmp_path / "seen.sql"
    file.write_text("SELECT a FROM seen")
    assert read(f"{address}#seen")["a"].to_pylist() == [1]
    with pytest.raises(
        DataError, match="GRANT CREATE TEMPORARY TABLES on the database"
    ):
        read(f"{address}#{file}")
    mariadb.run("GRANT CREATE TEMPORARY TABLES ON gyre.* TO reader@'127.0.0.1'")
    assert read(f"{address}#{file}")["a"].to_pylist() == [1]


@pytest.mark.journey
def test_every_type_of_postgresql_is_what_psql_shows(postgres, tmp_path):
    with psycopg.connect(postgres.address, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS kinds CASCADE; CREATE SCHEMA kinds")
        connection.execute("SET search_path = kinds; " + OWN_TYPES)
        types = connection.execute(
            "SELECT format_type(oid, NULL) FROM pg_type WHERE typtype <> 'p' AND typelem = 0 AND"
            " typrelid = 0 AND typnamespace = 'pg_catalog'::regnamespace"
        ).fetchall()
        known = connection.execute(
            "SELECT format_type(name::regtype, NULL) FROM unnest(%s::text[]) AS names(name)",
            [[name.split("(")[0] for name in POSTGRESQL]],
        ).fetchall()
        assert {*types} <= {*known}
        connection.execute("ALTER DATABASE postgres SET DateStyle = 'SQL, DMY'")
        connection.execute("ALTER DATABASE postgres SET IntervalStyle = 'iso_8601'")
        connection.execute("ALTER DATABASE postgres SET extra_float_digits = -9")
        connection.execute("ALTER DATABASE postgres SET TimeZone = 'Asia/Kolkata'")
        try:
            for kind, texts in POSTGRESQL.items():
                check_postgresql_type(postgres, connection, kind, texts)
        finally:
            connection.execute("ALTER DATABASE postgres RESET ALL")


def check_postgresql_type(server, connection, kind, texts):
    connection.execute(f"DROP TABLE IF EXISTS t; CREATE TABLE t (n int, v {kind})")
    for number, text in enumerate([*texts, None]):
        connection.execute(f"INSERT INTO t VALUES ({number}, %s::text::{kind})", [text])
    values = psql(server, kind)
    table, types = values_of(f"{server.address}#kinds.t")
    (found_type,) = [field.type for field in table.schema if field.name == "v"]
    found = [row["v"] for row in table.sort_by("n").to_pylist()]
    if kind == "bytea":
        assert found == [b"\x00\xff", None]
        return
    if pa.types.is_floating(types.get("v", found_type)):
        found = [value if value is None else float(value) for value in found]
    assert len(found) == len(values)
    for value, shown in zip(found, values, strict=True):
        if kind == "money" and shown:
            assert f"${float(value):,.2f}".replace("$-", "-$")[:9] == shown[:9]
        elif kind == "float4" and shown:
            assert same(value, struct.unpack("f", struct.pack("f", float(shown)))[0])
        else:
            assert same(value, shown), (kind, found, values)


def psql(server, kind):
    """Return the values as psql shows them in UTC."""
    settings = "SET DateStyle = ISO; SET TimeZone = UTC; SET IntervalStyle = postgres; "
    floats = "SET extra_float_digits = 1; SET search_path = kinds; "
    done = subprocess.run(
        [server.binaries / "psql", server.address, "--csv", "-qtP", "null=<null>"],
        input=settings + floats + "SELECT v FROM t ORDER BY n",
        capture_output=True,
        text=True,
        check=True,
    )
    rows = csv.reader(io.StringIO(done.stdout))
    return [None if row == ["<null>"] else "".join(row) for row in rows]


@pytest.mark.journey
def test_every_type_of_mariadb_is_what_its_client_shows(mariadb):
    for kind, literals in MARIADB.items():
        rows = ", ".join(
            f"({number}, {literal})"
            for number, literal in enumerate([*literals, "NULL"])
        )
        null = "NULL" if kind.startswith("timestamp") else ""
        done = mariadb.run(
            "SET NAMES utf8mb4; SET time_zone = '+00:00'; SET sql_mode = 'NO_ENGINE_SUBSTITUTION';"
            "USE gyre; DROP TABLE IF EXISTS kinds;"
            f"CREATE TABLE kinds (n int, v {kind} {null}); INSERT INTO kinds VALUES {rows};"
            f"SELECT {shown_by_mariadb(kind)} FROM kinds ORDER BY n"
        )
        assert done.returncode == 0, (kind, done.stderr)
        shown = [
            None if line == "NULL" else line.replace("\\\\", "\\")
            for line in done.stdout.splitlines()
        ]
        table, types = values_of(f"{mariadb.address}#kinds")
        found = [row["v"] for row in table.sort_by("n").to_pylist()]
        if kind.startswith("timestamp"):
            found = [value and value.removesuffix("Z") for value in found]
        declared = types.get("v", pa.string())
        if pa.types.is_floating(declared) or pa.types.is_integer(declared):
            found = [value if value is None else float(value) for value in found]
        assert len(found) == len(shown)
        for value, text in zip(found, shown, strict=True):
            assert same(value, text), (kind, found, shown)


def shown_by_mariadb(kind):
    """Return SQL by which the client shows all digits, and bits as a number."""
    if kind.startswith("float"):
        return "CAST(v AS DOUBLE)"
    return "CAST(v AS UNSIGNED)" if kind.startswith("bit") else "v"


@pytest.mark.journey
@pytest.mark.parametrize("kind", sorted(MARIADB_BYTES))
def test_bytes_of_mariadb_are_refused_by_column_and_type(mariadb, tmp_path, kind):
    columns = f"order_id int, customer_id int, order_ts date, number_of_cds {kind}, dollar_value float"
    done = mariadb.run(
        f"USE gyre; DROP TABLE IF EXISTS orders; CREATE TABLE orders ({columns})"
    )
    assert done.returncode == 0, done.stderr
    source = {"orders": f"{mariadb.address}#orders"}
    settings = new_settings(tmp_path / "home", sources=source)
    message = "column number_of_cds: expected int64, found binary: .* by a query"
    with pytest.raises(DataError, match=message):
        pull(settings, ORDERS, AS_OF).read_all()


@pytest.mark.journey
def test_all_types_that_mariadb_names_are_in_these_tables(mariadb):
    names = {kind.partition("(")[0].split()[0] for kind in {*MARIADB, *MARIADB_BYTES}}
    done = mariadb.run(
        "SELECT data_type FROM information_schema.columns UNION "
        "SELECT lower(plugin_name) FROM information_schema.plugins WHERE plugin_type = 'DATA TYPE'"
    )
    assert {*done.stdout.split()} <= names
    assert {"uuid", "inet4", "inet6", "longtext"} <= {*done.stdout.split()}


ODD_VALUES = {
    "numeric": ["'NaN'", "'Infinity'", "1e400"],
    "text": [],
    "date": ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'20000-01-01'"],
    "timestamptz": ["'infinity'", "'0044-03-15 BC'", "'20000-01-01'"],
}


@pytest.mark.journey
def test_postgresql_sets_a_row_aside_whose_value_does_not_fit(postgres, tmp_path):
    source = {"orders": f"{postgres.address}#orders"}
    settings = new_settings(tmp_path / "home", sources=source)
    for kind, column in [
        ("numeric", "dollar_value"),
        ("numeric", "number_of_cds"),
        ("date", "order_ts"),
        ("timestamptz", "order_ts"),
    ]:
        types = {"order_id": "int", "customer_id": "int", "order_ts": "timestamptz"}
        types |= {"number_of_cds": "int", "dollar_value": "float", column: kind}
        values = ODD_VALUES[kind] + ["1.5"] * (column == "number_of_cds")
        columns = ", ".join(f"{name} {kind}" for name, kind in types.items())
        with psycopg.connect(postgres.address, autocommit=True) as connection:
            connection.execute(
                f"DROP TABLE IF EXISTS orders; CREATE TABLE orders ({columns});"
                "INSERT INTO orders VALUES (0, 1, '2026-11-03', 2, 9.5)"
            )
            row = {"customer_id": "1", "order_ts": "'2026-11-03'"}
            row |= {"number_of_cds": "2", "dollar_value": "9.5"}
            for number, value in enumerate(values, 1):
                cells = [str(number), *(row | {column: value}).values()]
                connection.execute(f"INSERT INTO orders VALUES ({', '.join(cells)})")
        unreadable = {}
        found = pull(settings, ORDERS, AS_OF, unreadable=unreadable).read_all()
        assert found["order_id"].to_pylist() == [0]
        assert len(unreadable) == len(values)
        assert all(
            text.startswith(f"column {column}: ") for text in unreadable.values()
        )


@pytest.mark.journey
@pytest.mark.parametrize("kind", ["uuid", "interval", "int[]", "inet", "bytea", "time"])
def test_a_retyped_column_of_postgresql_is_refused_by_name(postgres, tmp_path, kind):
    with psycopg.connect(postgres.address, autocommit=True) as connection:
        connection.execute(
            "DROP TABLE IF EXISTS orders; CREATE TABLE orders (order_id int, customer_id int,"
            f" order_ts timestamptz, number_of_cds {kind}, dollar_value numeric)"
        )
    source = {"orders": f"{postgres.address}#orders"}
    settings = new_settings(tmp_path / "home", sources=source)
    with pytest.raises(DataError, match="column number_of_cds: expected int64, found"):
        pull(settings, ORDERS, AS_OF).read_all()
