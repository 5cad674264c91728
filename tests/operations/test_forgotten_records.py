"""Of which entity a record is: records in quarantine, of topics, and of streams of events."""

import json
from base64 import b64encode
from contextlib import closing
from dataclasses import replace

import pyarrow as pa
import pytest
from redis import Redis

from core.errors import DataError
from feature_engine.ingest.exact_types import as_text
from feature_engine.ingest.forgotten import keep_out
from feature_engine.ingest.key_values import KeyReader
from feature_engine.ingest.quarantine import (
    quarantine,
    quarantine_entries,
    quarantine_table,
    release,
)
from feature_engine.ingest.topics import text_set_aside
from feature_repo.datasets import orders
from feature_repo.definition import Topic
from operations.erase import ENTITY_PLACES, erase_requests_of_events
from operations.search import EntityKey, EntitySearch
from tests.conftest import AS_OF, new_settings, redis_server, wait_until
from tests.support.feature_engine.installation import Events
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, order, shop  # noqa: F401  (a fixture)
from tests.support.tools.small_disk import fill, small_disk

COLUMN = "customer_id"
ID = 987162587
OTHER = 21
PLACE = {"topic": "orders", "partition": 0, "offset": 5}
ENTRY = {"entry": "1-1"}
FIELDS = {COLUMN: "payload.after.customer", "order_id": "payload.after.id"}
TOPIC = replace(ORDERS, topic=Topic("orders", fields=FIELDS))
TEXTS = replace(
    ORDERS,
    schema=pa.schema(
        [
            field.with_type(pa.string()) if field.name == COLUMN else field
            for field in ORDERS.schema
        ]
    ),
)
OLD_AVRO = b"\0\0\0\0\1\x0e\xff"
"""Customer 7 as Avro writes it, behind the id of its schema, and a byte that is no UTF-8."""


def change(after, before=None):
    """Return a record of Debezium."""
    content = {"payload": {"op": "u", "before": before, "after": after}}
    return json.dumps(content).encode()


def record_text(record, place=PLACE):
    return text_set_aside(place, record)


OF_SEVEN = {
    "renamed": (TOPIC, record_text(change({"customer": 7}))),
    "a text": (TOPIC, record_text(change({"customer": "7"}))),
    "a text of a double": (TOPIC, record_text(change({"customer": "7.0"}))),
    "a text with zeros": (ORDERS, as_text({COLUMN: "7.00", "order_id": 1})),
    "a text with a space": (ORDERS, as_text({COLUMN: " 7", "order_id": 1})),
    "a text with a sign": (ORDERS, as_text({COLUMN: "+7", "order_id": 1})),
    "a whole double": (TOPIC, record_text(change({"customer": 7.0}))),
    "deleted": (TOPIC, record_text(change(None, {"customer": 7}))),
    "another after": (TOPIC, record_text(change({"customer": 8}, {"customer": 7}))),
    "twice": (TOPIC, record_text(b'{"payload":{"after":{"customer":8,"customer":7}}}')),
    "no number": (TOPIC, record_text(b'{"payload":{"after":{"customer":7,"a":NaN}}}')),
    "cut": (TOPIC, record_text(b'{"payload": {"after": {"customer" : 7, "a')),
    "cut, no UTF-8": (
        TOPIC,
        record_text(b'{"payload":{"after":{"customer":7,"a":"\xff'),
    ),
    "elsewhere": (TOPIC, record_text(b'{"who": 7}')),
    "no object": (TOPIC, record_text(b"7;9.5")),
    "an Avro without a schema": (ORDERS, record_text(OLD_AVRO)),
    "events": (ORDERS, record_text(b'[{"customer_id": "7"}]', ENTRY)),
    "one of two events": (
        ORDERS,
        record_text(b'[{"customer_id": 8}, {"customer_id": 7}]', ENTRY),
    ),
    "a row": (ORDERS, as_text({COLUMN: 7, "order_id": 1})),
    "a row of texts": (ORDERS, as_text({COLUMN: "7", "order_id": 1})),
    "a row with the former name": (ORDERS, as_text({"customer": 7})),
    "a number in a column of texts": (
        TEXTS,
        record_text(b'[{"customer_id": 7}]', ENTRY),
    ),
}
OF_OTHERS = {
    "70": (TOPIC, record_text(change({"customer": 70}))),
    "a leading zero": (TOPIC, record_text(change({"customer": "007"}))),
    "a text of a fraction": (TOPIC, record_text(change({"customer": "7.5"}))),
    "a negative text": (ORDERS, as_text({COLUMN: "-7.0", "order_id": 1})),
    "a text of a double in a column of texts": (
        TEXTS,
        record_text(b'[{"customer_id": "7.0"}]', ENTRY),
    ),
    "a leading space in a column of texts": (
        TEXTS,
        record_text(b'[{"customer_id": " 7"}]', ENTRY),
    ),
    "a fraction": (TOPIC, record_text(change({"customer": 7.5}))),
    "another field": (TOPIC, record_text(change({"customer": 8, "id": 7}))),
    "the name of the column": (
        TOPIC,
        record_text(b'{"customer_id":7,"payload":{"after":{"customer":8}}}'),
    ),
    "a quantity": (ORDERS, as_text({COLUMN: 8, "number_of_cds": 7})),
    "nobody": (ORDERS, as_text({COLUMN: None, "order_id": 7})),
    "cut": (TOPIC, record_text(b'{"id":7,"payload":{"after":{"customer":8,"a')),
    "other numbers": (TOPIC, record_text(b"77;-7;7.5;1.7;a7")),
    "no text": (TOPIC, record_text(b"\0\0\0\0\1\x10\xff")),
    "a leading zero in a column of texts": (
        TEXTS,
        record_text(b'[{"customer_id": "007"}]', ENTRY),
    ),
}


def key_of(dataset):
    return 7 if dataset is not TEXTS else "7"


@pytest.mark.parametrize(("dataset", "text"), OF_SEVEN.values(), ids=[*OF_SEVEN])
def test_a_record_is_of_the_entity_whose_key_an_ingest_would_read(
    tmp_path, dataset, text
):
    reader = KeyReader(new_settings(tmp_path), dataset, COLUMN)
    assert reader.of_row(text).are_of(key_of(dataset))


@pytest.mark.parametrize(("dataset", "text"), OF_OTHERS.values(), ids=[*OF_OTHERS])
def test_a_record_of_another_entity_is_not_of_this_one(tmp_path, dataset, text):
    reader = KeyReader(new_settings(tmp_path), dataset, COLUMN)
    assert not reader.of_row(text).are_of(key_of(dataset))


def test_bytes_in_quarantine_are_those_of_the_record(tmp_path):
    reader = KeyReader(new_settings(tmp_path), ORDERS, COLUMN)
    for record in (OLD_AVRO, "é\ufffd".encode(), b"\xff\xfe", b"{"):
        text = record_text(record)
        assert reader.of_row(text).content == record
        assert ("base64" in json.loads(text)) == (b"\xff" in record)


def set_aside(settings, texts):
    entries = quarantine_entries(texts, ["a reason"] * len(texts), AS_OF)
    quarantine(quarantine_table(settings, ORDERS), entries)


def test_forget_removes_records_of_the_key_from_quarantine_and_keeps_all_others(
    tmp_path, monkeypatch, caplog
):
    settings = new_settings(tmp_path)
    monkeypatch.setattr(orders, "ORDERS", TOPIC)
    own_texts = [text for dataset, text in OF_SEVEN.values() if dataset is not TEXTS]
    other_texts = [text for dataset, text in OF_OTHERS.values() if dataset is not TEXTS]
    cut_text = as_text(PLACE | {"events": "\0\0\0\0\1\ufffd\x0f"})
    set_aside(settings, [*own_texts, *other_texts, cut_text])
    erase = ENTITY_PLACES["rows in quarantine"]
    counting = EntitySearch(settings, EntityKey(COLUMN, 7))
    assert erase(counting) == len(own_texts)
    assert not caplog.records
    assert erase(EntitySearch(settings, EntityKey(COLUMN, 7), erase=True)) == len(
        own_texts
    )
    table = quarantine_table(settings, ORDERS)
    assert sorted(table.read()["row"].to_pylist()) == sorted(other_texts)
    (message,) = caplog.messages
    assert "whose key could not be read were searched by text; 1 of them" in message
    contents = [file.read_bytes() for file in table.path.rglob("*.parquet")]
    assert not any(b64encode(OLD_AVRO) in content for content in contents)
    assert erase(counting) == 0


@pytest.mark.journey
def test_a_forgotten_entity_does_not_come_back_by_records_that_cannot_be_read(shop):
    settings = shop.settings
    moment = AS_OF - DAY
    shop.has(order(1, OTHER, moment))
    shop.ingest(AS_OF)
    keep_out(settings, COLUMN, ID)
    keep_out(settings, "order_id", 4)
    bad_rows = [
        order(2, str(ID), moment.isoformat()),
        order(3, ID, "yesterday"),
        order(4, OTHER, "yesterday"),
        order(5, OTHER, "yesterday"),
    ]
    with closing(Events(settings, ORDERS)) as events:
        for number, row in enumerate(bad_rows):
            events.sends(AS_OF + HOUR + number * HOUR, row)
        # A value that no view takes sends the others of its request to quarantine.
        rows = [order(6, ID, moment), order(7, OTHER, moment, 1e308)]
        rows += [order(8, OTHER, moment, 1e308)]
        events.sends(AS_OF + 6 * HOUR, *rows)
        events.consumes()
    texts = [json.loads(row["row"]) for row in shop.quarantine()]
    assert texts
    assert not any(str(ID) in json.dumps(text) for text in texts)
    events = [text["events"] for text in texts if "events" in text]
    assert [json.loads(event)[0]["order_id"] for event in events] == [5]
    # An entry that a restored table, or an older release, has.
    good = order(9, OTHER, moment)
    set_aside(settings, [as_text(good | {COLUMN: ID}), as_text(good)])
    set_aside(settings, [text_set_aside(ENTRY, b'[{"customer_id": 987162587, "')])
    report = release(settings, ORDERS, AS_OF + 8 * HOUR)
    assert (report.released, report.forgotten) == (1, 2)
    assert {row[COLUMN] for row in shop.raw()} == {OTHER}
    assert not any(str(ID) in row["row"] for row in shop.quarantine())


@pytest.mark.journey
@pytest.mark.parametrize("is_saving", [False, True])
def test_the_file_of_redis_has_no_event_of_a_forgotten_entity_any_more(
    tmp_path, is_saving
):
    settings = new_settings(tmp_path)
    folder = settings.home / "redis"
    folder.mkdir()

    def holds_key():
        files = [file for file in folder.rglob("*") if file.is_file()]
        return any(str(ID).encode() in file.read_bytes() for file in files)

    search = EntitySearch(settings, EntityKey(COLUMN, ID), erase=True)
    with redis_server(settings.redis_port, folder):
        with Redis(port=settings.redis_port) as redis:
            redis.set("other", OTHER)
            redis.xadd("gyre:events:orders", {"events": json.dumps(order(1, ID, ""))})
            redis.delete("gyre:events:orders")
            wait_until("Redis to write", holds_key, seconds=60)
            if is_saving:  # then a rewrite is only planned
                redis.config_set("rdb-key-save-delay", 1_000_000)
                redis.bgsave()
            erase_requests_of_events(search)
        assert not holds_key()


@pytest.mark.journey
def test_a_file_of_redis_that_cannot_be_rewritten_is_said_until_it_can(tmp_path):
    settings = new_settings(tmp_path / "home")
    folder = settings.home / "redis"
    folder.mkdir(parents=True)
    search = EntitySearch(settings, EntityKey(COLUMN, ID), erase=True)
    with (
        small_disk(folder, megabytes=4) as disk,
        redis_server(settings.redis_port, folder),
        Redis(port=settings.redis_port) as redis,
    ):
        redis.set("key", ID)
        redis.delete("key")
        full = fill(disk)
        with pytest.raises(
            DataError, match=r"could not write its file anew.*disk full"
        ):
            erase_requests_of_events(search)
        full.unlink()
        erase_requests_of_events(search)
        contents = [file.read_bytes() for file in folder.glob("appendonlydir/*")]
        assert contents
        assert not any(str(ID).encode() in content for content in contents)
