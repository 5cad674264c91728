"""Tables of SQLite, DuckDB, PostgreSQL and MariaDB: written and shown by their own clients."""

import csv
import io
import re
import sqlite3
import subprocess
from contextlib import closing
from decimal import Decimal

import duckdb
import psycopg

from tests.support.feature_engine.odd.own_types import OwnType, plain
from tests.support.feature_engine.odd.server_types import (
    MARIADB,
    MARIADB_BYTES,
    OWN_TYPES,
    POSTGRESQL,
)
from tests.support.feature_engine.odd.source import quoted

INTS = ("0", "-1", "9007199254740991", "9007199254740993", "-9223372036854775808")
DOUBLES = ("0.0", "5.0", "0.1", "5e-324", "-1.7976931348623157e308", "9e999", "-9e999")
TEXTS = (
    "'007'", "''", "'it''s'", "'NaN'", "' pad '", "'数🙂'", "'\\N'", "'2026-11-20'", "'0x1F'", "'1e5'",
    "'9,50'", "'ten'", "CAST(x'ff41' AS TEXT)", "x'3031'", "x''", "x'ff'",
)  # fmt: skip
TIMES = (
    "'2026-11-20'", "'2026-11-20T10:30:00Z'", "'2026-11-20 10:30:00.123456+05:30'",
    "'0002-01-01T00:00:00Z'", "'0001-12-31T23:59:59Z'", "'9998-12-31T23:59:59.999999Z'",
    "'9999-01-01'", "'10000-01-01'", "'03/04/2026'", "'20261103'", "20261103", "2461000.5", "x'32'",
    "'2026-11-20 10:30:00'", "'2026-02-30'", "'now'",
)  # fmt: skip
WHOLE = (*INTS, *DOUBLES, *TEXTS)
SQLITE = {
    "int": "INTEGER|INT2|UNSIGNED BIG INT|MEDIUMINT|DECIMAL(10,0)|NUMERIC(9)|FLOATING POINT",
    "double": "REAL|DOUBLE PRECISION|FLOAT|NUMERIC|DECIMAL(10,5)|NUMBER",
    "text": "TEXT|VARCHAR(9)|NATIVE CHARACTER(70)|CLOB",
    "bool": "BOOLEAN|BOOL",
    "time": "DATE|DATETIME|TIMESTAMP|TIMESTAMP WITH TIME ZONE",
    "any": "|STRING|ANY",
    "": "BLOB|VARBINARY(3)",
}
SQLITE_VALUES = {
    "int": WHOLE,
    "double": WHOLE,
    "text": TEXTS,
    "bool": ("0", "1", "2", "'true'", "'yes'", "x'01'"),
    "time": TIMES,
    "any": TEXTS[:-3],
    "": ("x'00ff'",),
}
DUCKDB = {
    "int": (
        "TINYINT: -128, 127", "UTINYINT: 255", "SMALLINT: -32768", "INTEGER: 2147483647",
        "BIGINT: -9223372036854775808, 9007199254740993, 5", "UBIGINT: 18446744073709551615, 5",
    ),
    "whole": (
        "HUGEINT: -170141183460469231731687303715884105728, 5, 9007199254740993",
        "DECIMAL(38,0): 99999999999999999999999999999999999999, -5",
    ),
    "decimal": (
        "DECIMAL(4,2): 0.6, -99.99, 5", "DECIMAL(18,6): 90383.483112, 3345.1, 0.835817",
        "DECIMAL(38,37): 9.9999999999999999999999999999999999999, 0.6, 5",
    ),
    "single": ("FLOAT: 0.1, 16777217, 5, 'nan', '-inf'",),
    "double": ("DOUBLE: 0.1, -0.0, 5e-324, 5, 1.7976931348623157e308, 'nan', 'inf'",),
    "bool": ("BOOLEAN: true, false",),
    "text": (
        "VARCHAR: '', 'it''s', '数🙂', ' pad '", "UUID: '123e4567-e89b-12d3-a456-426614174000'",
        "ENUM('very sad', 'ok'): 'very sad'", "JSON: '[1.50]'",
    ),
    "day": ("DATE: '2026-11-20', 'infinity', '0001-01-01', '9998-12-31', '290000-01-01'",),
    "local": (
        "TIMESTAMP: '2026-11-20 10:00:00.123456', 'infinity', '-infinity', '0044-03-15 (BC)'",
        "TIMESTAMP_S: '2026-11-20 10:00:00'", "TIMESTAMP_MS: '1969-12-31 23:59:59.999'",
        "TIMESTAMP_NS: '2026-11-20 10:00:00.123456', '2026-11-20 10:00:00.123456789'",
    ),
    "time": ("TIMESTAMPTZ: '2026-11-20 10:00:00+05:30', 'infinity', '0044-03-15 (BC)'",),
    "": (
        "UHUGEINT: 340282366920938463463374607431768211455, 5", "BIGNUM: 12345678901234567890123",
        "TIME: '24:00:00'", "TIMETZ: '10:00:00+05'", "TIME_NS: '10:00:00.123456789'", "BLOB: 'ab'",
        "INTERVAL: INTERVAL 1 YEAR", "BIT: '000000001000001'", "INTEGER[]: [1]", "INTEGER[2]: [1; 2]",
        "STRUCT(a INTEGER): {'a': 1}", "MAP(INTEGER, INTEGER): MAP {1: 2}",
        "UNION(a INTEGER, b VARCHAR): 1", "GEOMETRY: NULL",
    ),
}  # fmt: skip


class SQLite:
    """A file of SQLite, in which any value may stand in any column."""

    def __init__(self, folder):
        self.file = folder / "own.db"
        self.types = [
            OwnType(declared, kind, SQLITE_VALUES[kind])
            for kind, names in SQLITE.items()
            for declared in names.split("|")
        ]

    def address(self, table):
        return f"sqlite://{self.file}#{table}"

    def write(self, table, columns, rows):
        declared = ", ".join(f"{quoted(n)} {t.declared}" for n, t in columns.items())
        with closing(sqlite3.connect(self.file)) as client, client:
            client.execute(f"CREATE TABLE {quoted(table)} ({declared})")
            for row in rows:
                cells = ", ".join(row[name] or "NULL" for name in columns)
                client.execute(f"INSERT INTO {quoted(table)} VALUES ({cells})")

    def shown(self, table, columns):
        with closing(sqlite3.connect(self.file)) as client:
            client.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            rows = client.execute(f"SELECT * FROM {quoted(table)}").fetchall()
        # Whole numbers are read as texts are, exactly.
        rows = [[exact(value) for value in row] for row in rows]
        return [dict(zip(columns, row, strict=True)) for row in rows]


class DuckDB:
    def __init__(self, folder):
        self.file = folder / "own.ddb"
        self.types = []
        for kind, lines in DUCKDB.items():
            for line in lines:
                declared, _, values = line.partition(": ")
                literals = [value.replace(";", ",") for value in values.split(", ")]
                if "{" in values:
                    literals = [values]
                self.types.append(OwnType(declared, kind, tuple(literals)))

    def address(self, table):
        return f"duckdb://{self.file}#{table}"

    def write(self, table, columns, rows):
        declared = ", ".join(f"{quoted(n)} {t.declared}" for n, t in columns.items())
        with duckdb.connect(self.file) as client:
            client.execute("SET TimeZone = 'UTC'")
            client.execute(f"CREATE TABLE {quoted(table)} ({declared})")
            for row in rows:
                cells = ", ".join(row[name] or "NULL" for name in columns)
                client.execute(f"INSERT INTO {quoted(table)} VALUES ({cells})")

    def shown(self, table, columns):
        cells = ", ".join(f"CAST({quoted(name)} AS VARCHAR)" for name in columns)
        with duckdb.connect(self.file) as client:
            client.execute("SET TimeZone = 'UTC'")
            rows = client.execute(f"SELECT {cells} FROM {quoted(table)}").fetchall()
        return in_kinds(columns, rows)


class PostgreSQL:
    """The schema `kinds` of a server, whose values `psql` shows."""

    settings = (
        "SET DateStyle = ISO; SET TimeZone = UTC; SET IntervalStyle = postgres; "
        "SET extra_float_digits = 1; SET lc_monetary = 'C'; SET search_path = kinds; "
    )

    def __init__(self, server):
        self.server = server
        with self._client() as client:
            client.execute("DROP SCHEMA IF EXISTS kinds CASCADE; CREATE SCHEMA kinds")
            client.execute("SET search_path = kinds; " + OWN_TYPES)
        self.types = []
        for declared, values in POSTGRESQL.items():
            kind = kind_of_postgresql(declared)
            more = ("5",) if kind in {"whole", "single", "double", "decimal"} else ()
            literals = tuple(text.replace("'", "''") for text in (*values, *more))
            cells = tuple(f"'{text}'::{declared}" for text in literals)
            self.types.append(OwnType(declared, kind, cells))

    def _client(self):
        return psycopg.connect(self.server.address, autocommit=True)

    def address(self, table):
        return f"{self.server.address}#kinds.{table}"

    def write(self, table, columns, rows):
        declared = ", ".join(f"{quoted(n)} {t.declared}" for n, t in columns.items())
        with self._client() as client:
            client.execute("SET search_path = kinds")
            client.execute(f"CREATE TABLE {quoted(table)} ({declared})")
            for row in rows:
                cells = ", ".join(row[name] or "NULL" for name in columns)
                client.execute(f"INSERT INTO {quoted(table)} VALUES ({cells})")

    def shown(self, table, columns):
        program = self.server.binaries / "psql"
        done = subprocess.run(
            [program, self.server.address, "--csv", "-qtP", "null=<null>"],
            input=f"{self.settings}SELECT * FROM {quoted(table)}",
            capture_output=True,
            text=True,
            check=True,
        )
        rows = []
        for cells in csv.reader(io.StringIO(done.stdout)):
            row = [None if cell == "<null>" else cell for cell in cells]
            for place, own_type in enumerate(columns.values()):
                if own_type.declared == "money" and row[place]:
                    row[place] = re.sub("[$,]", "", row[place])
            rows.append(row)
        return in_kinds(columns, rows)


class MariaDB:
    """A server's database, whose values its own client shows."""

    settings = (
        "SET NAMES utf8mb4; SET time_zone = '+00:00'; USE gyre;"
        "SET sql_mode = 'NO_ENGINE_SUBSTITUTION';"
    )

    def __init__(self, server):
        self.server = server
        self.types = []
        for declared, values in MARIADB.items():
            kind = kind_of_mariadb(declared)
            more = ("5",) if kind in {"whole", "single", "double", "decimal"} else ()
            self.types.append(OwnType(declared, kind, (*values, *more)))
        for declared in sorted(MARIADB_BYTES):
            self.types.append(OwnType(declared, "", ()))

    def address(self, table):
        return f"{self.server.address}#{table}"

    def _run(self, statements):
        done = self.server.run(self.settings + statements)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def write(self, table, columns, rows):
        declared = []
        for name, own_type in columns.items():
            may_be_null = "NULL" if own_type.declared.startswith("timestamp") else ""
            declared.append(f"`{name}` {own_type.declared} {may_be_null}")
        statements = [
            f"CREATE TABLE `{table}` ({', '.join(declared)}) CHARACTER SET utf8mb4"
        ]
        for row in rows:
            cells = ", ".join(row[name] or "NULL" for name in columns)
            statements.append(f"INSERT INTO `{table}` VALUES ({cells})")
        self._run("; ".join(statements))

    def shown(self, table, columns):
        cells = [shown_by_mariadb(name, t.declared) for name, t in columns.items()]
        text = self._run(f"SELECT {', '.join(cells)} FROM `{table}`")
        rows = []
        for line in text.removesuffix("\n").split("\n"):
            row = [
                None if cell == "NULL" else unescaped(cell) for cell in line.split("\t")
            ]
            rows.append(row)
        return in_kinds(columns, rows)


def kind_of_postgresql(declared):
    kinds = {
        "int": "int2 int4 int8",
        "whole": "numeric(60,0) oid xid xid8 cid",
        "single": "float4",
        "double": "float8",
        "decimal": "numeric numeric(9,4) money cents",
        "bool": "bool",
        "day": "date",
        "local": "timestamp timestamp(0)",
        "time": "timestamptz timestamptz(0)",
        "": "bytea",
    }
    found = [kind for kind, names in kinds.items() if declared in names.split()]
    return found[0] if found else "text"


def kind_of_mariadb(declared):
    name = declared.split("(")[0].split()[0]
    if name == "decimal":
        return "whole" if ",0)" in declared else "decimal"
    if "int" in name or name in {"boolean", "bit", "year"}:
        return "int"
    kinds = {"float": "single", "double": "double", "date": "day"}
    kinds |= {"datetime": "local", "timestamp": "time"}
    return kinds.get(name, "text")


def shown_by_mariadb(name, declared):
    """Return SQL by which the client shows all digits, bits as a number, and the zone of a time."""
    if declared.startswith("float"):
        return f"CAST(`{name}` AS DOUBLE)"
    if declared.startswith("timestamp"):
        return f"CONCAT(`{name}`, '+00')"
    return f"CAST(`{name}` AS UNSIGNED)" if declared.startswith("bit") else f"`{name}`"


def unescaped(text):
    """Return a text that the client has written with backslashes."""
    signs = {"n": "\n", "t": "\t", "0": "\0"}
    return re.sub(r"\\(.)", lambda match: signs.get(match[1], match[1]), text)


def exact(value):
    return Decimal(value) if isinstance(value, int) else value


def in_kinds(columns, rows):
    """Return rows of texts as rows of values."""
    return [
        {
            name: plain(text, own_type.kind)
            for (name, own_type), text in zip(columns.items(), row, strict=True)
        }
        for row in rows
    ]
