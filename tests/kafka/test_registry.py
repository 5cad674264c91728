"""Records with the id of a schema, by a real registry: Avro and JSON Schema."""

import gc
import json
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from io import BytesIO
from struct import pack
from uuid import UUID

import pyarrow as pa
import pytest
from confluent_kafka.schema_registry import (
    Schema,
    SchemaReference,
    SchemaRegistryClient,
)
from fastavro import parse_schema, schemaless_writer

from core.errors import BrokerUnavailableError
from feature_engine.ingest.key_values import KeyReader
from feature_engine.ingest.topics import record_reader, text_set_aside
from feature_repo.definition import TIMESTAMP, Topic
from tests.conftest import new_settings
from tests.support.feature_engine.shop import ORDERS
from tests.support.stores.registry import registry_server

pytestmark = [
    pytest.mark.kafka,
    # A reader lives as long as its process, and so do its connections.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
AVRO = {
    "type": "record",
    "name": "order",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {
            "name": "price",
            "type": {
                "type": "bytes",
                "logicalType": "decimal",
                "precision": 20,
                "scale": 2,
            },
        },
        {"name": "customer", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}]},
    ],
}
JSON = {
    "type": "object",
    "title": "order",
    "properties": {"id": {"type": "integer"}},
    "required": ["id"],
}
REFERRING = """
{"type": "object", "properties": {"order": {"$ref": "order.json"}}}
"""
SCHEMA = pa.schema(
    {
        "order_id": pa.int64(),
        "customer": pa.string(),
        "order_ts": TIMESTAMP,
        "price": pa.float64(),
    }
)
ROW = {
    "id": 2**62,
    "at": datetime(2026, 1, 1, 0, 0, 0, 123_457, UTC),
    "price": Decimal("12.34"),
    "customer": UUID(int=7),
    "day": None,
}


def dataset(kind):
    topic = Topic("orders", format=kind, fields={"order_id": "id", "order_ts": "at"})
    return replace(
        ORDERS, schema=SCHEMA, entity="customer", shipped=None, views={}, topic=topic
    )


def reader(folder, kind, address):
    settings = new_settings(
        folder,
        events_url="kafka://127.0.0.1:1",
        schema_registry={"url": address},
    )
    return record_reader(settings, dataset(kind))


def avro(number, row, schema=AVRO):
    file = BytesIO(pack(">bI", 0, number))
    file.seek(5)
    schemaless_writer(file, parse_schema(schema), row)
    return file.getvalue()


def test_records_of_schemas_are_read_and_others_are_at_fault(tmp_path):
    with ExitStack() as stack:
        address = stack.enter_context(registry_server(tmp_path / "registry.log"))
        client = stack.enter_context(SchemaRegistryClient({"url": address}))
        number = client.register_schema("any", Schema(json.dumps(AVRO), "AVRO"))
        read = reader(tmp_path, "avro", address)
        late_read = reader(tmp_path, "avro", address)
        (row,) = json.loads(read(avro(number, ROW)))
        assert row == {
            "order_id": 2**62,
            "customer": "00000000-0000-0000-0000-000000000007",
            "order_ts": "2026-01-01T00:00:00.123457+00:00",
            "price": 12.34,
        }
        # A team adds a field.
        field = {"name": "more", "type": "int", "default": 1}
        wider = AVRO | {"fields": [*AVRO["fields"], field]}
        second = client.register_schema("any", Schema(json.dumps(wider), "AVRO"))
        text = read(avro(second, ROW | {"more": 3}, wider))
        assert json.loads(text) == [row]
        with pytest.raises(ValueError, match=r"40403"):
            read(avro(999, ROW))
        with pytest.raises(ValueError, match=r"framing|magic|Invalid|EOF|byte"):
            read(b'{"id": 1}')
        with pytest.raises(ValueError, match=r"EOFError|IndexError"):
            read(avro(number, ROW)[:-9])
        day = AVRO["fields"][4] | {"name": "at"}
        other = AVRO | {"fields": [AVRO["fields"][0], day]}
        third = client.register_schema("other", Schema(json.dumps(other), "AVRO"))
        of_a_day = avro(third, {"id": 1, "at": ROW["at"].date()}, other)
        problem = "column order_ts, field at: .*found date"
        with pytest.raises(ValueError, match=problem):
            read(of_a_day)

        part = client.register_schema("json", Schema(json.dumps(JSON), "JSON"))
        read_json = reader(tmp_path, "json-schema", address)
        head = pack(">bI", 0, part)
        large = head + b'{"id": 123456789012345678901234567890, "price": 4.0}'
        (row,) = json.loads(read_json(large))
        assert row["order_id"] == 123456789012345678901234567890
        assert row["customer"] is None
        with pytest.raises(ValueError, match=r"'id' is a required property"):
            read_json(head + b"{}")
        reference = SchemaReference("order.json", "json", 1)
        referring = Schema(REFERRING, "JSON", [reference])
        whole = client.register_schema("referring", referring)
        assert json.loads(read_json(pack(">bI", 0, whole) + b'{"order": {"id": 3}}'))

        wrong = reader(tmp_path, "avro", address.replace("v7", "v99"))
        with pytest.raises(BrokerUnavailableError, match=r"Schema registry: .*404"):
            wrong(avro(number, ROW))
    with pytest.raises(BrokerUnavailableError, match=r"Schema registry: .*refused"):
        late_read(avro(number, ROW))
    # It has read that schema before.
    assert json.loads(read(avro(number, ROW)))
    del read, late_read, read_json, wrong
    gc.collect()


def test_the_key_of_a_record_set_aside_is_read_by_its_schema_else_searched_in_its_bytes(
    tmp_path,
):
    place = {"topic": "orders", "partition": 0, "offset": 5}
    seventh = "00000000-0000-0000-0000-000000000007"
    with ExitStack() as stack:
        address = stack.enter_context(registry_server(tmp_path / "registry.log"))
        client = stack.enter_context(SchemaRegistryClient({"url": address}))
        number = client.register_schema("any", Schema(json.dumps(AVRO), "AVRO"))
        settings = new_settings(
            tmp_path,
            events_url="kafka://127.0.0.1:1",
            schema_registry={"url": address},
        )
        numbers = KeyReader(settings, dataset("avro"), "order_id")
        customers = KeyReader(settings, dataset("avro"), "customer")

        def keys(reader, record):
            return reader.of_row(text_set_aside(place, record))

        whole = avro(number, ROW)
        assert keys(numbers, whole).values == {str(2**62)}
        assert keys(customers, whole).values == {seventh}
        # Nobody has the schema of the first, and the second is cut.
        for record in (
            avro(999, ROW | {"id": 300}),
            avro(number, ROW | {"id": 300})[:-9],
        ):
            assert not keys(numbers, record).is_read
            assert keys(numbers, record).are_of(300)
            assert not keys(numbers, record).are_of(301)
        assert keys(customers, avro(999, ROW)).are_of(seventh)
        assert not keys(customers, avro(999, ROW)).are_of(seventh[:-1] + "8")
    closed = KeyReader(settings, dataset("avro"), "order_id")
    with pytest.raises(BrokerUnavailableError, match="Schema registry"):
        keys(closed, whole)
