"""Drawn records of a topic, as teams write them, and what a table must have of each.

What a record holds says Python's own reader of JSON; `held_in_json` says then what a column of a
dataset must have, in plain Python without Gyre.
"""

import json
from base64 import b64encode
from datetime import timedelta
from decimal import Decimal
from math import isfinite
from random import Random
from struct import unpack
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from feature_repo.definition import Dataset, Topic
from tests.support.feature_engine.odd.own_types import MISFIT, held
from tests.support.feature_engine.odd.source import (
    AMOUNTS,
    ENTITIES,
    FIRST_TIME,
    INTS,
    LAST_TIME,
    NAMES,
    TEXTS,
    TYPES,
    moment,
)

PARTITIONS = 4
"""As many has a topic of the mock cluster."""
MORE_NAMES = (
    "payload",
    "offset",
    "partition",
    "events",
    "entry",
    "__op",
)
FIELD_NAMES = (
    "id", "Id", "é", "e\u0301", "数量", "it's", 'say "x"', "", "a b", "$x", "\x00", "null", "0",
    "line\nend", "🙂", "a\\b", "[0]", "*", " pad ", "x" * 200, "\u2028", "event", "value", "{}",
    "constructor", "__proto__", "-1", "true", "#", "/x",
)  # fmt: skip
"""Names of fields. None has a dot: a dot parts the names of a field within another."""
CONTAINERS = (("in ner",), ("data", "", "Row"), ("d", "e", "f", "g"))
UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
"""Microseconds of each unit."""
PLACEHOLDER = "__debezium_unavailable_value"
PLACEHOLDERS = (PLACEHOLDER, b64encode(PLACEHOLDER.encode()).decode())
ODD_TEXTS = (
    "\x00", "a\x00b", "\x7f", "\u2028", "\ufeff", "\ufffd", "0x1F", "👩‍👩‍👧", "\ud800", "x\udfff",
    "\udc00\ud800", *PLACEHOLDERS, f"{PLACEHOLDER} ",
)  # fmt: skip
NUMBERS = (
    *map(str, INTS), *map(repr, AMOUNTS), str(2**63), str(-(2**63) - 1), str(2**70), "7.0", "-0",
    "1e2", "1E+2", "123e-1", "7.5", "1e308", "-1e308", "1e309", "1e400", "-1e999", "1e-400",
    "9007199254740992.0", "9007199254740993.0", "9007199254740991.0", "9223372036854775807.0",
    "4503599627370496.25", "1.00000000000000000001", "123456789012345678.9", "1e23", "2.50",
    "16777217", "3.5e38", "127", "128", "-129", "2147483648", "0.1000000000000000055511151231257827",
)  # fmt: skip
"""Numbers as JSON spells them."""
TIME_TEXTS = (
    "2026-11-01T10:30:00Z", "2026-11-01t10:30:00z", "2026-11-01 10:30:00.5+05:30",
    "2026-11-01T10:30:00.123456-0330", "2026-11-01T10:30:00.123456000Z",
    "2026-11-01T10:30:00.1234567Z", "2026-11-01T10:30:00", "2026-11-01", "20261101T103000Z",
    "03/04/2026", "2026-02-30T00:00:00Z", "2026-11-01T24:30:00Z", "2026-12-31T23:59:60Z",
    "0001-06-01T00:00:00Z", "0002-01-01T00:00:00Z", "0001-12-31T23:00:00-02:00",
    "9998-12-31T23:59:59.999999Z", "9999-01-01T00:00:00Z", "9998-12-31T23:59:59.999999-00:30",
    "10000-01-01T00:00:00Z", "1582-10-10T00:00:00+14:00", "1969-12-31T23:59:59.999999Z",
    "2026-11-01T10:30:00+23:59", "1790850600123", "now", " 2026-11-01T10:30:00Z",
    "2026-11-01T10:30:00Z[UTC]", "\uff12026-11-01T10:30:00Z",
)  # fmt: skip
OTHERS = (
    "true", "false", '"7"', '"007"', '"0x1F"', '"1e5"', '"NaN"', '""', "[]", "[7]", "{}", '{"a": 1}',
    '"true"', "1", "0", "7.5", '"AQI="',
)  # fmt: skip
"""Values of JSON that most columns do not hold: a decimal of Debezium may be a text or base64."""
DECOYS = (
    '"\\ud800"', "[[[[]]]]", str(2**70), "1e400", '{"a": {"a": null}}', "null", '"x"', "-0.0",
    '"\\u0000"',
)  # fmt: skip
"""Values of fields that no column has."""
NARROW = {"int": (pa.int8(), pa.int16(), pa.int32()), "float": (pa.float32(),)}
EXACT_SINGLE = 2**24
NO_OBJECT = ()
"""Stands for the value of a field where a record has no object: no column has it."""


class Shown(NamedTuple):
    """A record as the topic's own client shows it."""

    partition: int
    offset: int
    time: int
    content: bytes | None


class Fate(NamedTuple):
    """What must come of a record.

    Attributes:
        row: The row of the table; None: there is none.
        faults: Value of each column at fault; without one, the record as a whole is.
        is_skipped: Whether it says nothing.

    """

    row: dict | None = None
    faults: dict | None = None
    is_skipped: bool = False


class OddTopic:
    """The columns of a topic of JSON, where records have their values, and the records.

    Args:
        seed: Draws everything.

    Attributes:
        kinds: Kind of each column, in order.
        types: Type of Arrow of each column.
        required: Columns that may not be null.
        paths: Names of the field of each column, the outermost first.

    """

    format = "json"
    field_names = FIELD_NAMES
    containers = CONTAINERS

    def __init__(self, seed):
        self.chance = Random(seed)
        self.name = f"Shop.public_orders-{seed}"
        self.kinds = self._kinds()
        self.types = {name: self._type(name) for name in self.kinds}
        self.required = {*self.key, self.entity, self.time}
        self.required |= {name for name in self.kinds if self.chance.random() < 0.1}
        self.unit = self.chance.choice([None, *UNITS])
        self.shape = self.chance.choice(["flat", "nested", "debezium", "rewritten"])
        self.head = self.chance.choice([(), ("payload",)])
        self.paths = self._paths()
        self.fields = self._fields()
        self.version = None
        if self.chance.random() < 0.25:
            self.version = self.chance.choice([self.time, self.big])
        self.good = {}
        self.bad = {}
        for name in self.kinds:
            self.good[name], self.bad[name] = self.values(name)
        self.keys = self._keys()

    def _kinds(self):
        names = {name.lower(): name for name in (*NAMES, *MORE_NAMES)}
        # The partition of a view is called period.
        entities = [name for name in ENTITIES if name != "period"]
        self.entity = self.chance.choice(entities)
        names.pop(self.entity.lower(), None)
        drawn = self.chance.sample([*names.values()], 9)
        plain = [
            "order_id",
            "line",
            "at",
            "later",
            "amount",
            "big",
            "note",
            "flag",
            "unreadable row",
        ]
        choices = zip(drawn, plain, strict=True)
        columns = [self.chance.choice(pair) for pair in choices]
        first, second, self.time, later, amount, self.big, note, flag, pieces = columns
        self.key = self.chance.choice([(first,), (first, second)])
        kinds = {self.time: "time", later: "time", amount: "float", flag: "bool"}
        kinds |= {self.big: "int", pieces: "int", note: "text"}
        for name in (*self.key, self.entity):
            kinds[name] = self.chance.choice(["int", "text"])
        return dict(self.chance.sample([*kinds.items()], len(kinds)))

    def _type(self, name):
        kind = self.kinds[name]
        is_narrow = kind in NARROW and self.chance.random() < 0.15
        return self.chance.choice(NARROW[kind]) if is_narrow else TYPES[kind]

    def _paths(self):
        """Draw where a record has the value of each column."""
        names = [name for name in self.field_names if name not in self.kinds]
        names = self.chance.sample(names, len(self.kinds))
        paths = {}
        for column, name in zip(self.kinds, names, strict=True):
            outer = ()
            if self.shape == "debezium":
                outer = (*self.head, "after")
            elif self.shape == "nested":
                outer = self.chance.choice([(), *self.containers])
            has_own_name = self.chance.random() < 0.5 and self.can_name(column, outer)
            paths[column] = (*outer, column if has_own_name else name)
        if self.shape == "debezium" and self.chance.random() < 0.5:
            paths[self.time] = (*self.head, "ts_ms")
        return paths

    def can_name(self, column, outer):
        """Whether a field can have the name of a column; of one within another, dots part names."""
        return not outer or "." not in column

    def _fields(self):
        """Return the fields as a Topic has them; it may leave out a column's own name."""
        fields = {}
        for column, path in self.paths.items():
            is_same = path == (column,)
            if not is_same or ("." not in column and self.chance.random() < 0.5):
                fields[column] = ".".join(path)
        return fields

    def values(self, name):
        """Return JSON of values that a column holds, and of others; None: the field is missing."""
        kind = self.kinds[name]
        number = unpack("d", self.chance.randbytes(8))[0]
        drawn = [repr(number)] if isfinite(number) else []
        texts = [self._quoted(text) for text in (*TEXTS, *ODD_TEXTS)]
        pools = {
            "int": NUMBERS,
            "float": [*NUMBERS, *drawn],
            "text": texts,
            "bool": ["true", "false"],
            "time": [*map(self._quoted, TIME_TEXTS), *self._moments()],
        }
        good = []
        bad = []
        for text in (*pools[kind], *OTHERS, "null", None):
            is_bad = self.held(name, self.shown(name, text)) is MISFIT
            (bad if is_bad else good).append(text)
        return good, bad

    def shown(self, name, text):  # noqa: ARG002  (of Avro it depends on the column)
        """Return what a reader of JSON shows of a value."""
        return None if text is None else json.loads(text, parse_float=Decimal)

    def _moments(self):
        """Draw times as numbers: of all years, in all units."""
        chance = self.chance
        ends = [
            FIRST_TIME - 1,
            FIRST_TIME,
            LAST_TIME,
            LAST_TIME + 1,
            0,
            -1,
            -86_400_000_001,
        ]
        moments = ends + [chance.randint(FIRST_TIME, LAST_TIME) for _ in range(4)]
        moments.append(1_790_850_600_123_456)
        steps = {1, UNITS.get(self.unit, 1)}
        numbers = [str(value // step) for value in moments for step in sorted(steps)]
        return [
            *numbers,
            "1790850600123456789",
            str(2**70),
            "1790850600.5",
            "1790850600.0",
        ]

    def _quoted(self, text):
        """Return a text in JSON, which may have its signs as they are."""
        is_half = any("\ud800" <= sign <= "\udfff" for sign in text)
        return json.dumps(text, ensure_ascii=is_half or self.chance.random() < 0.5)

    def _keys(self):
        """Draw JSON of the key and the entity of some rows."""
        identity = (*self.key, self.entity)
        values = {}
        for name in identity:
            odd_values = self.chance.sample(
                self.good[name], min(len(self.good[name]), 12)
            )
            values[name] = [*odd_values, *self.plain_values(self.kinds[name])]
        count = self.chance.randint(15, 45)
        return [
            {name: self.chance.choice(values[name]) for name in identity}
            for _ in range(count)
        ]

    def plain_values(self, kind):
        """Return JSON of many values of a key."""
        numbers = [str(number) for number in range(1, 60)]
        return [f'"{number}"' for number in numbers] if kind == "text" else numbers

    def dataset(self, name):
        """Return a dataset of the topic."""
        columns = [
            pa.field(column, self.types[column], nullable=column not in self.required)
            for column in self.kinds
        ]
        return Dataset(
            name=name,
            schema=pa.schema(columns),
            key=self.key,
            event_time=self.time,
            entity=self.entity,
            look_back=timedelta(days=7),
            silence=timedelta(days=1),
            views={},
            labels={},
            topic=Topic(
                self.name, format=self.format, fields=self.fields, time_unit=self.unit
            ),
            version=self.version,
        )

    def held(self, name, value):
        """Return what a column has for a value of JSON, or MISFIT."""
        if value is None:
            return MISFIT if name in self.required else None
        found = held_in_json(value, self.kinds[name], UNITS.get(self.unit))
        return in_type(found, value, self.types[name])

    def records(self, now):
        """Draw records: partition, time in milliseconds, and bytes, or none.

        Args:
            now: Milliseconds since 1970.

        """
        chance = self.chance
        bad_share = chance.choice([0.05, 0.2, 0.35, 0.35, 0.8])
        time = now - 10**9
        # Of most topics all records of a key are in one partition.
        is_spread = chance.random() < 0.3
        partitions = {}
        contents = []
        records = []
        for _ in range(chance.randint(40, 90)):
            key = chance.choice(self.keys)
            partition = chance.randrange(PARTITIONS)
            if not is_spread:
                partition = partitions.setdefault(self._key_text(key), partition)
            is_bad = chance.random() < bad_share
            content = self.odd_content(key) if is_bad else self.content(self.cells(key))
            # A record that repeats what the table has does not renew its arrival.
            if contents and not is_spread and chance.random() < 0.1:
                partition, content = chance.choice(contents)
            if chance.random() < 0.05:
                content = chance.choice([None, b""])
            else:
                contents.append((partition, content))
            # Clocks of senders differ.
            time += chance.choice([0, 0, 1, 1000, 60_000, -5_000])
            records.append((partition, time, content))
        return records

    def _key_text(self, key):
        return str([self.held(name, self.shown(name, key[name])) for name in self.key])

    def cells(self, key):
        """Draw JSON of the values of a row."""
        values = {name: self.chance.choice(good) for name, good in self.good.items()}
        return values | key

    def odd_content(self, key):
        """Draw a record that no row can come of."""
        chance = self.chance
        cells = self.cells(key)
        if chance.random() < 0.6:
            names = [name for name in cells if self.bad[name]]
            for name in chance.sample(names, chance.choice([1, 1, 1, 2])):
                cells[name] = chance.choice(self.bad[name])
            return self.content(cells)
        if self.shape in {"debezium", "rewritten"} and chance.random() < 0.5:
            return self.content(cells, is_deletion=True)
        return chance.choice(self.broken(self.content(cells)))

    def broken(self, content):
        """Return records that are no JSON, or no row, or that lose a value where they are read."""
        return (
            content[:-1],
            content + b"}",
            b"\xef\xbb\xbf" + content,
            content.decode().encode("utf-16"),
            content.replace(b"{", b'{"odd": NaN, ', 1),
            content.replace(b"{", b'{"odd": -Infinity, ', 1),
            content.replace(b"{", b'{"odd": 1, "odd": 1, ', 1),
            content.replace(b"{", b'{"odd": {"\\u00e9": 1, "\xc3\xa9": 2}, ', 1),
            content.replace(b"{", b"{'odd': 1, ", 1),
            content + b"\xff",
            b'"\xed\xa0\x80"',
            b"[" + content + b"]",
            b"[]", b"null", b"7", b'"x"', b"\xff", b" ", b"{", b"{}", b"[" * 9999, b"\0\0\0\0\7{}",
        )  # fmt: skip

    def content(self, cells, *, is_deletion=False):
        """Return a record with the values of columns, and with others."""
        tree = self.tree(cells)
        if self.shape == "debezium":
            tree = self._envelope(tree, is_deletion=is_deletion)
        if self.shape == "rewritten":
            text = "true" if is_deletion else "false"
            tree["__deleted"] = self.chance.choice([text, f'"{text}"'])
        return self._written(tree).encode()

    def tree(self, cells):
        """Return the values of columns where a record has them; a field that is None is missing."""
        tree = {}
        for column, cell in cells.items():
            *outer, name = self.paths[column]
            part = tree
            for outer_name in outer:
                part = part.setdefault(outer_name, {})
            if cell is not None:
                part[name] = cell
        return tree

    def _envelope(self, tree, *, is_deletion):
        """Put what Debezium writes beside the row."""
        chance = self.chance
        part = tree
        for name in self.head:
            part = part[name]
        row = part["after"]
        part["op"] = chance.choice(['"c"', '"u"', '"r"'])
        part["before"] = chance.choice(["null", dict.fromkeys(row, "1")])
        if is_deletion:
            part |= {"op": '"d"', "before": row, "after": "null"}
        part["source"] = {"lsn": str(2**70), "ts_ms": "1790850600123", "db": '"shop"'}
        part.setdefault("ts_ms", "1790850600123")
        part["transaction"] = "null"
        if self.head:
            tree["schema"] = {"type": '"struct"', "optional": "false", "fields": "[]"}
        return tree

    def _written(self, part):
        """Return JSON of a part of a record, whose fields are in any order, among others."""
        if isinstance(part, str):
            return part
        fields = dict(part)
        for name in part:
            if self.chance.random() < 0.1:  # names that differ in capitals are two
                fields.setdefault(name.swapcase(), self.chance.choice(DECOYS))
        if self.chance.random() < 0.5:
            fields.setdefault(
                f"more {self.chance.randrange(9)}", self.chance.choice(DECOYS)
            )
        names = self.chance.sample([*fields], len(fields))
        space = self.chance.choice(["", " ", "\n\t"])
        texts = [
            f"{self._quoted(name)}:{space}{self._written(fields[name])}"
            for name in names
        ]
        return "{" + f",{space}".join(texts) + "}"

    def content_of(self, record):
        """Return what the topic's own client shows of a record; see `json_content`."""
        return json_content(record)

    def fate(self, record):
        """Return what must come of a record (bytes, or none)."""
        if not record:
            return Fate(is_skipped=True)
        try:
            content = self.content_of(record)
        except ValueError:
            return Fate(faults={})
        if isinstance(content, dict) and content.get("__deleted") in ("true", True):
            return Fate(faults={})
        values = {name: value_at(content, path) for name, path in self.paths.items()}
        row = {name: self.held(name, value) for name, value in values.items()}
        faults = {name: values[name] for name, value in row.items() if value is MISFIT}
        return Fate(faults=faults) if faults else Fate(row)

    def expected(self, shown, order):
        """Return the rows that a key may have in the table.

        Of a key's records in several partitions that count alike, either may.

        Args:
            shown: The records of each partition, by their offset.
            order: Returns the rank (a tuple) of a record with its arrival; the highest counts, and
                before it the highest version.

        """
        candidates = {}
        arrivals = {}
        for record in shown:
            arrivals[record.partition] = max(
                record.time, arrivals.get(record.partition, 0)
            )
            row = self.fate(record.content).row
            if row is None:
                continue
            rank = order(record, arrivals[record.partition])
            if self.version:
                value = row[self.version]
                rank = (value is not None, value or 0, *rank)
            key = tuple(row[name] for name in self.key)
            best, rows = candidates.get(key, (rank, {}))
            if rank > best:
                rows = {}
            if rank >= best:
                candidates[key] = (rank, rows | {record.partition: row})
        return {key: [*rows.values()] for key, (_, rows) in candidates.items()}


def json_content(record):
    """Return the values of a record.

    Raises:
        ValueError: It is no JSON in UTF-8, or has a field twice.

    """
    try:
        return json.loads(
            record.decode(),
            object_pairs_hook=_once,
            parse_constant=_refuse,
            parse_float=Decimal,
        )
    except RecursionError as exc:
        raise ValueError("too many levels") from exc


def _once(fields):
    if len(dict(fields)) < len(fields):
        raise ValueError("twice")
    return dict(fields)


def _refuse(constant):
    raise ValueError(constant)


def value_at(content, path):
    """Return the value of a field: None where an object lacks it, NO_OBJECT where there is none."""
    for name in path:
        if content is None:
            return None
        if not isinstance(content, dict):
            return NO_OBJECT
        content = content.get(name)
    return content


def held_in_json(value, kind, step):
    """Return what a column of a kind has for a value of JSON, or MISFIT.

    Args:
        value: As Python reads it; a number with a point, or an exponent, is a Decimal.
        kind: Kind of the column: a text is no number, and a number no truth.
        step: Microseconds of a number for a time; None: none is a time.

    """
    if isinstance(value, Decimal):
        double = float(value)
        if kind == "int" and value != double:
            return MISFIT
        value = double
    is_number = type(value) in {int, float}
    fits = {
        "int": is_number,
        "float": is_number,
        "bool": type(value) is bool,
        "text": isinstance(value, str),
        "time": isinstance(value, str) or type(value) is int,
    }
    if not fits[kind] or (isinstance(value, str) and value in PLACEHOLDERS):
        return MISFIT
    if kind != "time":
        return held(value, kind, None)
    if isinstance(value, str):
        is_time = value.isascii() and len(value) >= len("2026-11-01T10:30:00Z")
        return held(value.upper(), kind, None) if is_time else MISFIT
    if step is None or not FIRST_TIME <= value * step <= LAST_TIME:
        return MISFIT
    return moment(value * step)


def in_type(found, value, arrow_type):
    """Return what a narrower type has for what its kind has, or MISFIT."""
    if found is MISFIT:
        return MISFIT
    if pa.types.is_integer(arrow_type):
        limits = np.iinfo(arrow_type.to_pandas_dtype())
        return found if limits.min <= found <= limits.max else MISFIT
    if pa.types.is_float32(arrow_type):
        with np.errstate(over="ignore"):
            single = float(np.float32(found))
        is_between = type(value) is int and abs(value) > EXACT_SINGLE
        return single if isfinite(single) and not is_between else MISFIT
    return found
