"""Drawn rows of a team's table, in any type of Arrow and any format, and what must come of them."""

import csv
from decimal import Decimal
from math import isnan
from random import Random

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

from tests.support.feature_engine.odd.own_types import MISFIT, held
from tests.support.feature_engine.odd.source import TEXTS

ROWS = 4
INTS = [0, 1, -1, 7, 2**53 - 1, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1]
DOUBLES = [0.0, -0.0, 1.0, 0.1, 1.5, 2.0**53, 1e300, 5e-324, float("nan"), float("inf")]
DECIMALS = [Decimal(text) for text in ("0.60", "-99.99", "3345.10", "2.00", "90383.48")]
WIDE = [0, 1, -1, 7, 2**53 - 1, 2**53 + 1, 10**30 + 1]
NUMBER_TEXTS = [
    "1",
    "007",
    "1.0",
    "0x1F",
    "9007199254740993",
    "1e5",
    "ten",
    "",
    "-5",
    "2.50",
]
TIMES = [0, 1, -1, 1_764_000_000, -62_104_060_800, -62_135_596_800, 253_370_764_799]
TIME_TEXTS = [
    "2026-11-01", "2026-11-01T10:30:00Z", "2026-11-01 10:30:00.5+05:30", "03/04/2026", "20261103",
    "2026-02-30", "0001-06-01", "9999-01-01", "10000-01-01",
]  # fmt: skip
NUMBERS = {
    pa.int8(): INTS, pa.int32(): INTS, pa.int64(): INTS, pa.uint64(): INTS, pa.float32(): DOUBLES,
    pa.float64(): DOUBLES, pa.decimal128(38, 0): WIDE, pa.decimal128(18, 2): DECIMALS,
    pa.string(): NUMBER_TEXTS,
}  # fmt: skip
VALUES = {
    "int": NUMBERS,
    "float": NUMBERS,
    "text": {pa.string(): TEXTS, pa.large_string(): TEXTS},
    "time": {
        pa.timestamp("s", "UTC"): TIMES, pa.timestamp("ms", "Asia/Kolkata"): TIMES,
        pa.timestamp("us"): TIMES, pa.timestamp("ns", "UTC"): TIMES, pa.date32(): TIMES,
        pa.string(): TIME_TEXTS,
    },
}  # fmt: skip
"""Kind of a column → type of Arrow → values, of which it may not hold all."""
NO_CSV = (pa.string(), pa.float32(), pa.timestamp("ns", "UTC"))
NO_DELTA = (pa.uint64(), pa.timestamp("s", "UTC"), pa.timestamp("ms", "Asia/Kolkata"))
"""Types that a format has not, or has in other words."""
STEPS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


class TeamRows:
    """A table with a column of each kind, whose values are mostly held by it.

    Args:
        seed: Draws everything.
        kinds: Kind of each column (int, float, text, time), by its name.
        identity: The column of whose texts different ones stay different.
        text: A column of texts.
        pools: Types and values to draw of a column, in place of those of its kind.
        names: Name that a column has in the table, where it is another one.

    Attributes:
        table: The rows.

    """

    def __init__(self, seed, kinds, identity, text, pools=None, names=None):
        self.chance = Random(seed)
        self.pools = pools or {}
        self.names = names or {}
        self.kinds = kinds
        self.identity = identity
        self.text = text
        self.table = pa.table({name: self._column(name) for name in kinds})

    def _column(self, name):
        drawn_values = self.pools.get(name) or VALUES[self.kinds[name]]
        arrow_type = self.chance.choice([*drawn_values])
        values = [
            self._in_type(value, arrow_type) for value in drawn_values[arrow_type]
        ]
        pool = pa.array(dict.fromkeys(values), arrow_type)
        is_bad = self.chance.random() < 0.15
        places = [
            place
            for place in range(len(pool))
            if is_bad or self._held(name, pool[place : place + 1])[0] is not MISFIT
        ]
        count = ROWS if name == self.identity else 1
        if len(places) < count:
            return self._column(name)
        chosen = self.chance.sample(places, min(ROWS, len(places)))
        chosen += self.chance.choices(places, k=ROWS - len(chosen))
        return pool.take(pa.array(chosen))

    def _in_type(self, value, arrow_type):
        """Return a value that the type has; another in place of one that it has not."""
        if pa.types.is_timestamp(arrow_type):
            value *= STEPS[arrow_type.unit]
            # DuckDB cuts what is below a microsecond from a file's times.
            value = value if abs(value) < 2**63 else 2**61 // 1000 * 1000
        elif pa.types.is_date(arrow_type):
            value //= 86_400
        elif pa.types.is_integer(arrow_type):
            limits = np.iinfo(arrow_type.to_pandas_dtype())
            value = value if limits.min <= value <= limits.max else 5 + value % 100
        elif pa.types.is_float32(arrow_type):
            with np.errstate(over="ignore"):
                value = np.float32(value)
        elif pa.types.is_decimal(arrow_type):
            value = Decimal(value)
        return value

    def held(self, name):
        """Return what a column of the kind has for each value, or MISFIT."""
        return self._held(name, self.table[name].combine_chunks())

    def _held(self, name, column):
        kind = self.kinds[name]
        if kind == "time":
            column = in_utc(column).cast(pa.string())
        values = column.to_pylist()
        if pa.types.is_float32(column.type):
            values = [np.float32(value) for value in values]
        return [self._one(name, value) for value in values]

    def _one(self, name, value):
        is_double = isinstance(value, float | np.float32)
        if is_double and self.kinds[name] == "float" and isnan(value):
            return None  # as pandas writes a null
        found = held(value, self.kinds[name], "UTC")
        is_code = isinstance(value, str) and str(found) != value
        if name == self.identity and is_code:
            return MISFIT
        return found

    def write(self, folder):
        """Write the table in a format that is drawn; return its address."""
        types = {*self.table.schema.types}
        formats = [self._parquet, self._duckdb]
        is_null_in_csv = "" in self.table[self.text].to_pylist()
        if not (types & {*NO_CSV} or is_null_in_csv):
            formats.append(self._csv)
        if not types & {*NO_DELTA}:
            formats.append(self._delta)
        names = [self.names.get(name, name) for name in self.table.column_names]
        return self.chance.choice(formats)(folder, self.table.rename_columns(names))

    def _parquet(self, folder, table):
        pq.write_table(table, folder / "rows.parquet")
        return str(folder / "rows.parquet")

    def _delta(self, folder, table):
        write_deltalake(folder / "rows", table)
        return str(folder / "rows")

    def _duckdb(self, folder, table):
        with duckdb.connect(folder / "rows.ddb") as client:
            client.register("drawn", table)
            client.execute("CREATE TABLE lines AS SELECT * FROM drawn")
        return f"duckdb://{folder}/rows.ddb#lines"

    def _csv(self, folder, table):
        with (folder / "rows.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(table.column_names)
            columns = [in_utc(column).cast(pa.string()) for column in table]
            texts = [column.to_pylist() for column in columns]
            writer.writerows(zip(*texts, strict=True))
        return str(folder / "rows.csv")


def in_utc(column):
    """Return a column whose times with a zone are of UTC."""
    kind = column.type
    has_zone = pa.types.is_timestamp(kind) and kind.tz
    return column.cast(pa.timestamp(kind.unit, "UTC")) if has_zone else column
