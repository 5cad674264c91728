"""An odd source in a place other than this disk: databases, Iceberg, a bucket."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pymysql

from core.files import location
from tests.support.feature_engine.odd.source import (
    DAY,
    FIRST_TIME,
    LAST_TIME,
    Layouts,
    micros,
    quoted,
)

TABLE = "Order Lines"
FIRST_DATETIME = micros(datetime(1000, 1, 1, tzinfo=UTC))
"""The earliest time of MariaDB's type."""
NUMBERS = {"int": "BIGINT", "float": "DOUBLE", "text": "LONGTEXT", "bool": "BOOLEAN"}


class Place(Layouts):
    """Writes rows that a place can hold into it, and others into files.

    Args:
        source: Whose rows they are.
        folder: An empty one, for files.

    """

    has_order = False
    """Whether the place tells which of two rows of a key is the later one."""

    def write(self, rows):
        are_held = all(self._holds(name, row[name]) for row in rows for name in row)
        if are_held and (self.has_order or self.has_different_keys(rows)):
            self.number += 1
            self.misfits = []
            return self.put(rows)
        return super().write(rows)

    def _holds(self, name, value):
        kind = self.source.kinds[name]
        if value is None or kind == "bool":
            return True
        if kind == "time":
            return FIRST_TIME <= value <= LAST_TIME - DAY
        return isinstance(value, str) == (kind == "text")

    def put(self, rows):
        """Write rows into the place; return their address."""
        raise NotImplementedError


class Postgres(Place):
    def __init__(self, source, folder, server):
        super().__init__(source, folder)
        self.server = server

    def put(self, rows):
        types = {"text": "TEXT", "float": "DOUBLE PRECISION", "time": "TIMESTAMPTZ"}
        columns = ", ".join(
            f"{quoted(name)} {(NUMBERS | types)[kind]}"
            for name, kind in self.source.kinds.items()
        )
        marks = ", ".join(["%s"] * len(self.source.kinds))
        with psycopg.connect(self.server.address, autocommit=True) as connection:
            connection.execute(f'DROP TABLE IF EXISTS "{TABLE}"')
            connection.execute(f'CREATE TABLE "{TABLE}" ({columns})')
            for record in self._table(rows).to_pylist():
                values = [*record.values()]
                connection.execute(f'INSERT INTO "{TABLE}" VALUES ({marks})', values)
        return f"{self.server.address}#{TABLE}"


class MariaDB(Place):
    """Its times have no zone: TIMESTAMP ends in 2106, so that they are DATETIME."""

    time_zone = "UTC"

    def __init__(self, source, folder, server):
        super().__init__(source, folder)
        self.server = server
        # It has no type for truth: BOOLEAN is TINYINT.
        flags = [name for name, kind in source.kinds.items() if kind == "bool"]
        source.kinds.update(dict.fromkeys(flags, "int"))
        source.truths = (1, 0, None)

    def _holds(self, name, value):
        is_finite = not isinstance(value, float) or abs(value) < float("inf")
        is_late = self.source.kinds[name] != "time" or (value or 0) >= FIRST_DATETIME
        return is_finite and is_late and super()._holds(name, value)

    def put(self, rows):
        types = NUMBERS | {"time": "DATETIME(6)"}
        columns = ", ".join(
            f"`{name}` {types[kind]}" for name, kind in self.source.kinds.items()
        )
        marks = ", ".join(["%s"] * len(self.source.kinds))
        with closing(
            pymysql.connect(
                host="127.0.0.1",
                port=self.server.port,
                user="gyre",
                password="secret",
                database="gyre",
                charset="utf8mb4",
                autocommit=True,
            )
        ) as connection:
            cursor = connection.cursor()
            cursor.execute("SET sql_mode = 'STRICT_ALL_TABLES'")
            cursor.execute(f"DROP TABLE IF EXISTS `{TABLE}`")
            cursor.execute(f"CREATE TABLE `{TABLE}` ({columns}) CHARACTER SET utf8mb4")
            for record in self._table(rows).to_pylist():
                cursor.execute(
                    f"INSERT INTO `{TABLE}` VALUES ({marks})", [*record.values()]
                )
        return f"{self.server.address}#{TABLE}"


class Iceberg(Place):
    has_order = True

    def __init__(self, source, folder, catalog):
        super().__init__(source, folder)
        self.catalog = catalog

    def put(self, rows):
        table = self._table(rows)
        name = f"shop.lines_{self.source.seed}"
        if self.catalog.table_exists(name):
            self.catalog.drop_table(name)
        self.catalog.create_table(name, schema=table.schema).append(table)
        return f"iceberg://odd#{name}"


class Bucket(Place):
    """Files below `address`, in the layouts of files."""

    def __init__(self, source, folder, address):
        super().__init__(source, folder)
        self.address = f"{address}/{source.seed}"

    def write(self, rows):
        place = Path(Layouts.write(self, rows))
        base = f"{self.address}/{self.number}"
        for file in [place, *place.rglob("*")]:
            if file.is_file():
                path = location(f"{base}/{file.relative_to(place.parent)}")
                path.fs.pipe_file(path.path, file.read_bytes())
        return f"{base}/{place.name}"
