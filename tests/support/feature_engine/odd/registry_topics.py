"""Drawn records with the id of a schema: of a JSON Schema, and of Avro with every type."""

import json
from datetime import datetime
from decimal import Decimal
from io import BytesIO
from math import inf, nan
from struct import pack
from types import MappingProxyType
from uuid import UUID

import numpy as np
from fastavro import parse_schema, schemaless_reader, schemaless_writer

from tests.support.feature_engine.odd.own_types import LAST_YEAR, MISFIT
from tests.support.feature_engine.odd.source import (
    AMOUNTS,
    FIRST_TIME,
    INTS,
    LAST_TIME,
    TEXTS,
)
from tests.support.feature_engine.odd.topics import (
    NO_OBJECT,
    PLACEHOLDERS,
    TIME_TEXTS,
    UNITS,
    OddTopic,
    held_in_json,
    in_type,
    json_content,
)

HEADER = 5
"""Bytes before the record: a zero, and the id of its schema."""
OTHER_SCHEMA = 999_999
SINGLES = [float(np.float32(number)) for number in (0.1, 7.5, 3.4e38, 2**24 + 2, 1e-40)]
DOUBLES = [*AMOUNTS, 7.0, 7.5, 2.0**53, 2.0**53 - 1, 1e308, -1e308, nan, inf, -inf]
WHOLE = [Decimal(number) for number in (*INTS, 2**63, 2**70)]
MONEY = [
    Decimal(text) for text in ("0.00", "4.00", "-99.99", "0.07", "90071992547409.93")
]
MOMENTS = [
    FIRST_TIME,
    FIRST_TIME - 1,
    LAST_TIME,
    LAST_TIME + 1,
    0,
    -1,
    1_790_850_600_123_456,
]
WORDS = [*TEXTS, *TIME_TEXTS, "\x00", "a\x00b", "\ufeff", *PLACEHOLDERS]


def logical(base, name, **more):
    return {"type": base, "logicalType": name, **more}


TYPES = {
    "int": ("int", [0, -1, 7, 2**31 - 1, -(2**31)]),
    "long": ("long", [*INTS, *MOMENTS, 1_790_850_600]),
    "float": ("float", [0.0, -0.0, 7.0, nan, inf, *SINGLES]),
    "double": ("double", DOUBLES),
    "boolean": ("boolean", [True, False]),
    "string": ("string", WORDS),
    "bytes": ("bytes", [b"", b"7", b"\xff", PLACEHOLDERS[0].encode()]),
    "enum": ({"type": "enum", "symbols": ["A", "true", "_7"]}, ["A", "true", "_7"]),
    "fixed": ({"type": "fixed", "size": 2}, [b"ab"]),
    "array": ({"type": "array", "items": "long"}, [[], [7]]),
    "map": ({"type": "map", "values": "long"}, [{}, {"a": 7}]),
    "whole": (logical("bytes", "decimal", precision=38), WHOLE),
    "money": (logical("bytes", "decimal", precision=18, scale=2), MONEY),
    "fixed money": (logical("fixed", "decimal", precision=20, scale=2, size=12), MONEY),
    "uuid": (logical("string", "uuid"), [UUID(int=7), UUID(int=2**128 - 1)]),
    "date": (logical("int", "date"), [0, -1, 20_758]),
    "time": (logical("long", "time-micros"), [0, 86_399_999_999]),
    "millis": (logical("long", "timestamp-millis"), [*(time // 1000 for time in MOMENTS), 2**62]),
    "micros": (logical("long", "timestamp-micros"), [*MOMENTS, -(2**62)]),
    "local": (logical("long", "local-timestamp-micros"), MOMENTS),
}  # fmt: skip
"""A type of Avro, and values as its writer takes them."""
FITTING = {
    "int": ("int", "long", "whole", "double", "money"),
    "float": ("double", "float", "money", "fixed money", "long"),
    "text": ("string", "uuid", "enum"),
    "bool": ("boolean",),
    "time": ("millis", "micros", "string"),
}
FIELD_NAMES = (
    "id", "Id", "ID", "_", "__proto__", "null", "type", "name", "a1", "A_1", "value", "true",
    "record", "x" * 300, "fields", "None",
)  # fmt: skip


class SchemaTopic(OddTopic):
    """A topic of JSON whose records begin with the id of a JSON Schema."""

    format = "json-schema"
    kind = "JSON"
    schema = MappingProxyType(
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}
    )
    number = 0
    """The registry's id of the schema."""

    def content(self, cells, *, is_deletion=False):
        return self.framed(super().content(cells, is_deletion=is_deletion))

    def framed(self, content):
        return pack(">bI", 0, self.number) + content

    def broken(self, content):
        bare_content = content[HEADER:]
        broken_contents = super().broken(bare_content)
        others = (
            bare_content,
            pack(">bI", 0, OTHER_SCHEMA) + bare_content,
            b"\1" + content[1:],
        )
        return (*map(self.framed, broken_contents), *others)

    def content_of(self, record):
        if record[:HEADER] != self.framed(b""):
            raise ValueError(record)
        content = json_content(record[HEADER:])
        if not isinstance(content, dict):
            raise ValueError(content)  # noqa: TRY004  (of a record)
        return content


class AvroTopic(OddTopic):
    """A topic of Avro, with a type for each column, of which some hold few of its values.

    Attributes:
        avro_types: Name of the type of each column, one of TYPES.

    """

    format = "avro"
    kind = "AVRO"
    field_names = FIELD_NAMES
    containers = (("inner",), ("data", "Row"), ("d", "e", "f", "g"))
    number = 0
    """The registry's id of the schema."""

    def __init__(self, seed):
        self.avro_types = {}
        super().__init__(seed)
        self.schema = self._schema()

    def can_name(self, column, outer):  # noqa: ARG002  (of JSON it depends on both)
        return column.isascii() and column.isidentifier()

    def values(self, name):
        """Return values of Avro that a column holds, and others; draw the type of its field."""
        kind = self.kinds[name]
        is_identity = name in {*self.key, self.entity}
        names = (
            FITTING[kind][:1]
            if is_identity or self.chance.random() < 0.4
            else FITTING[kind]
        )
        if name not in self.required and self.chance.random() < 0.3:
            names = [*TYPES]
        self.avro_types[name] = self.chance.choice(names)
        _, values = TYPES[self.avro_types[name]]
        good = []
        bad = []
        for value in [*values, None]:
            if value is None and name in self.required:
                continue
            try:
                is_bad = self.held(name, self.shown(name, value)) is MISFIT
            except OverflowError:
                is_bad = True
            (bad if is_bad else good).append(value)
        return good, bad

    def shown(self, name, value):
        """Return what Avro's reader shows of a value."""
        if value is None:
            return None
        file = BytesIO()
        avro_type = parse_schema(self._named(TYPES[self.avro_types[name]][0], "T"))
        schemaless_writer(file, avro_type, value)
        file.seek(0)
        return schemaless_reader(file, avro_type, None)

    def plain_values(self, kind):
        numbers = range(1, 60)
        return [*map(str, numbers)] if kind == "text" else [*numbers]

    def held(self, name, value):
        found = value
        if value is None:
            return MISFIT if name in self.required else None
        if isinstance(value, UUID):
            found = str(value)
        elif isinstance(value, Decimal) and value == value.to_integral_value():
            found = int(value)
        elif isinstance(value, Decimal):
            found = float(value) if self.kinds[name] == "float" else NO_OBJECT
        if isinstance(found, datetime):
            is_held = (
                self.kinds[name] == "time"
                and found.tzinfo
                and 2 <= found.year <= LAST_YEAR
            )
            return found if is_held else MISFIT
        if type(found) not in {int, float, bool, str}:
            return MISFIT
        found = held_in_json(found, self.kinds[name], UNITS.get(self.unit))
        return in_type(found, value, self.types[name])

    def _named(self, avro_type, name):
        """Return a type, with a name where Avro wants one."""
        is_named = isinstance(avro_type, dict) and avro_type["type"] in {
            "enum",
            "fixed",
        }
        return avro_type | {"name": name} if is_named else avro_type

    def _schema(self):
        """Return the schema of the records."""
        tree = self.tree({column: column for column in self.kinds})
        schema = self._record(tree, "R")
        part = schema
        if self.shape == "rewritten":
            part["fields"].append({"name": "__deleted", "type": "string"})
        if self.shape == "debezium":
            for _ in self.head:
                part = part["fields"][0]["type"]
            (after,) = [field for field in part["fields"] if field["name"] == "after"]
            row_name = after["type"]["name"]
            after["type"] = ["null", after["type"]]
            part["fields"].append({"name": "before", "type": ["null", row_name]})
            part["fields"].append({"name": "op", "type": "string"})
        part["fields"].append({"name": "more", "type": TYPES["array"][0]})
        return schema

    def _record(self, tree, name):
        fields = []
        for field_name, part in tree.items():
            if isinstance(part, dict):
                avro_type = self._record(part, f"{name}_{len(fields)}")
            else:
                avro_type = self._named(
                    TYPES[self.avro_types[part]][0], f"{name}_{len(fields)}"
                )
                if part not in self.required:
                    avro_type = ["null", avro_type]
            fields.append({"name": field_name, "type": avro_type})
        return {"type": "record", "name": name, "fields": fields}

    def content(self, cells, *, is_deletion=False):
        tree = self.tree(cells)
        part = tree
        if self.shape == "rewritten":
            tree["__deleted"] = "true" if is_deletion else "false"
        if self.shape == "debezium":
            for name in self.head:
                part = part[name]
            part["op"] = self.chance.choice("cur")
            if is_deletion:
                part |= {"op": "d", "before": part["after"], "after": None}
        part["more"] = [1, 2]
        file = BytesIO(self.framed(b""))
        file.seek(HEADER)
        schemaless_writer(file, parse_schema(self.schema), tree)
        return file.getvalue()

    def framed(self, content):
        return pack(">bI", 0, self.number) + content

    def broken(self, content):
        return (
            content[:-1],
            content[:HEADER],
            content[:3],
            content[HEADER:],
            b"\1" + content[1:],
            pack(">bI", 0, OTHER_SCHEMA) + content[HEADER:],
            json.dumps({"id": 7}).encode(),
        )

    def content_of(self, record):
        if record[:HEADER] != self.framed(b""):
            raise ValueError(record)
        file = BytesIO(record[HEADER:])
        try:
            return schemaless_reader(file, parse_schema(self.schema), None)
        except Exception as exc:  # whatever Avro's reader raises
            raise ValueError(record) from exc
