"""A drawn table with a column of every type of a database, and what must come of its rows."""

from datetime import timedelta
from math import isfinite
from random import Random
from struct import unpack

import pyarrow as pa

from feature_repo.definition import Dataset
from tests.support.feature_engine.odd.own_types import KINDS, MISFIT, OwnType, held
from tests.support.feature_engine.odd.source import NAMES, TEXTS, TYPES

TABLES = (
    "Order Lines",
    "it's",
    "a%b",
    "Größe",
    "select",
    'say "x"',
    "x;--",
    "数量",
    "?",
    "{}",
)
ZONES = ("UTC", "Asia/Kolkata", "Europe/Berlin")
NUMBERS = {"int", "float"}
LONG_TEXTS = ("text", "longtext", "clob", "varchar")
SMALLEST = 1e-300
"""A server may have no smaller number."""
MOST_BAD_ROWS = 15
"""From 20 on, they would stop the delivery."""


class OwnTable:
    """A table with a column of each type.

    Args:
        client: One of `own_clients`.
        seed: Draws everything.
        time: SQL of a time that is due, and its type.

    Attributes:
        columns: Type of each column, by its name.
        kinds: What the dataset's column is; "" if no column can be.

    """

    def __init__(self, client, seed, time):
        self.chance = Random(seed)
        self.client = client
        self.zone = self.chance.choice(ZONES)
        self.table = self.chance.choice(TABLES)
        self.key, self.time = "Key %", "time"
        self.moment, time_type = time
        self.columns = {
            self.key: OwnType("BIGINT", "int", ()),
            self.time: OwnType(time_type, "time", ()),
        }
        types = self.chance.sample(client.types, len(client.types))
        for number, own_type in enumerate(types):
            more = [self._drawn(own_type) for _ in range(3)]
            values = (*own_type.values, *filter(None, more))
            name = f"{self.chance.choice(NAMES)} {number}"
            self.columns[name] = own_type._replace(values=values)
        self.kinds = {name: self._kind(own.kind) for name, own in self.columns.items()}
        self.kinds[self.key] = "int"

    def _kind(self, own_kind):
        kind = KINDS.get(own_kind, "")
        if own_kind == "any":
            return self.chance.choice(["text", "int", "float"])
        is_other = kind in NUMBERS and self.chance.random() < 0.3
        return (NUMBERS - {kind}).pop() if is_other else kind

    def _drawn(self, own_type):
        """Return SQL of a value that is drawn; None: the type has its own words."""
        chance = self.chance
        year = chance.choice([chance.randint(2, 9998), chance.randint(1960, 2040)])
        day = f"{year:04d}-{chance.randint(1, 12):02d}-{chance.randint(1, 28):02d}"
        second = f"{chance.randrange(24):02d}:{chance.randrange(60):02d}:00"
        part = f"{chance.randrange(10**6):06d}"
        number = unpack("d", chance.randbytes(8))[0]
        is_plain = isfinite(number) and abs(number) > SMALLEST
        decimal = f"{chance.randrange(1, 1000) / 100:.2f}"
        word = chance.choice(TEXTS).replace("'", "''").replace("\\", "")
        values = {
            "double": repr(number) if is_plain else None,
            "decimal": decimal,
            "day": f"'{day}'",
            "local": f"'{day} {second}.{part}'"
            if "(" not in own_type.declared
            else None,
            "text": f"'{word}'" if own_type.declared.lower() in LONG_TEXTS else None,
        }
        is_small = own_type.declared.startswith("TIMESTAMP_")
        return None if is_small else values.get(own_type.kind)

    def write(self):
        """Write rows that fit, and some with values that do not; return what the client shows."""
        readable = {name: own for name, own in self.columns.items() if self.kinds[name]}
        probe = f"probe of {self.table}"
        count = max(len(own_type.values) for own_type in readable.values())
        cells = [
            {
                name: own.values[number] if number < len(own.values) else None
                for name, own in readable.items()
            }
            for number in range(count)
        ]
        self.client.write(probe, readable, self._keyed(cells))
        good_cells = {name: [] for name in readable}
        bad_cells = {name: [] for name in readable}
        shown = self.client.shown(probe, readable)
        for row, values in zip(cells, shown, strict=True):
            for name, cell in row.items():
                if cell is not None:
                    is_bad = held(values[name], self.kinds[name], self.zone) is MISFIT
                    (bad_cells if is_bad else good_cells)[name].append(cell)
        rows = self._arranged(good_cells, bad_cells)
        self.client.write(self.table, readable, self._keyed(rows))
        return self.client.shown(self.table, readable)

    def _arranged(self, good_cells, bad_cells):
        rows = []
        good_count = max(map(len, good_cells.values())) + 1
        bad_count = min(max(map(len, bad_cells.values())), MOST_BAD_ROWS)
        for cells in (*good_cells.values(), *bad_cells.values()):
            self.chance.shuffle(cells)
        for number in range(good_count + bad_count):
            row = {}
            for name, good in good_cells.items():
                bad = bad_cells[name] if number >= good_count and good else ()
                place = number - good_count
                cells = [*good, None] if number else good
                row[name] = cells[number % len(cells)] if cells else None
                if place < len(bad) and bad:
                    row[name] = bad[place]
            rows.append(row)
        return rows

    def _keyed(self, rows):
        for number, row in enumerate(rows):
            row |= {self.key: str(number), self.time: self.moment}
        return rows

    def dataset(self, kinds=None):
        kinds = kinds or {name: kind for name, kind in self.kinds.items() if kind}
        return Dataset(
            name="own_table",
            schema=pa.schema([(name, TYPES[kind]) for name, kind in kinds.items()]),
            key=(self.key,),
            event_time=self.time,
            entity=self.key,
            look_back=timedelta(days=7),
            silence=timedelta(days=1),
            views={},
            labels={},
        )

    def expected(self, shown):
        """Return the rows that land, and the columns at fault of the others, both by key."""
        landed = {}
        refused = {}
        for values in shown:
            row = {
                name: held(value, self.kinds[name], self.zone)
                for name, value in values.items()
            }
            faults = [name for name, value in row.items() if value is MISFIT]
            if faults:
                refused[row[self.key]] = (faults, row)
            else:
                landed[row[self.key]] = row
        return landed, refused
