"""Topics that others write: what a record holds is in the table, or the record in quarantine."""

import json
import re
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from math import isfinite
from uuid import UUID

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from core.connectors import kafka
from core.connectors.kafka import client_settings
from core.errors import (
    BatchRejectedError,
    BrokerUnavailableError,
    DataError,
    SettingsError,
)
from feature_engine.events.kafka_broker import DEAD_LETTERS
from feature_engine.ingest.forgotten import keep_out
from feature_engine.ingest.landing import land
from feature_engine.ingest.pipeline import ingest, whole_history
from feature_engine.ingest.quarantine import (
    quarantine,
    quarantine_entries,
    quarantine_table,
)
from feature_engine.ingest.source import place, pull
from feature_engine.ingest.topics import MICROSECONDS, json_value, record_reader
from feature_engine.offline.raw import raw_table
from feature_repo.datasets import orders
from feature_repo.definition import TIMESTAMP, Topic
from tests.conftest import AS_OF, new_settings, unused_port
from tests.support.feature_engine.installation import consume_all
from tests.support.feature_engine.shop import HOUR, ORDERS, SPEC
from tests.support.stores.kafka import mock_kafka

pytestmark = pytest.mark.journey

FIELDS = {
    "order_id": "payload.after.id",
    "order_ts": "payload.ts_ms",
    "number_of_cds": "payload.after.Stückzahl",
}
FIRST = {
    "order_id": 1,
    "customer_id": 4,
    "order_ts": datetime(2026, 10, 1, 10, 30, 0, 123000, UTC),
    "number_of_cds": 2,
    "dollar_value": 9.5,
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1]),
    st.floats(),
    st.integers(-(2**60), 2**60).map(float),
    st.text(max_size=5),
    st.sampled_from(["7", "7.5", "NaN", "2026-10-01T10:30:00Z", "\ud800", "\x00"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["id", "é", "a.b"]), st.integers(), max_size=2),
)
CHANGES = st.dictionaries(st.sampled_from(ORDERS.schema.names), ODD, max_size=2)
REMOVED = st.sampled_from([None] * 5 + [*ORDERS.schema.names, "payload", "after"])
TEXTS = st.sampled_from([b"", b"{", b"[]", b"null", b"\xff", b'"x"', b"[" * 9999])
RECORDS = st.one_of(TEXTS, st.tuples(CHANGES, REMOVED))


def topic_of(name="orders", **more):
    return replace(ORDERS, shipped=None, topic=Topic(name, **more))


def record(number, changes=None, removed=None):
    """Return a record as a team writes it: nested, with fields that no column has."""
    values = FIRST | {"order_id": number, "order_ts": 1_790_850_600_123}
    values |= changes or {}
    values.pop(removed, None)
    content = {"dollar_value": None, "né": [{}]}
    after = {}
    payload = {"op": "c", "source": {"lsn": 2**70}}
    for name, value in values.items():
        field = FIELDS.get(name, name).rpartition(".")[2]
        part = content if name not in FIELDS else after
        if name == "order_ts":
            part = payload
        part[field] = value
    if removed != "after":
        payload["after"] = after
    if removed != "payload":
        content["payload"] = payload
    return json.dumps(content).encode()


def sent_time(value):
    if type(value) is int:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=value)
    if value != "2026-10-01T10:30:00Z":  # no other drawn text is a time
        raise ValueError(value)
    return datetime.fromisoformat(value)


def sent_integer(value):
    is_exact = type(value) is int or (type(value) is float and abs(value) < 2**53)
    if not is_exact or value != int(value) or not -(2**63) <= value < 2**63:
        raise ValueError(value)
    return int(value)


def sent_double(value):
    is_exact = type(value) is float or (type(value) is int and abs(value) <= 2**53)
    if not is_exact or not isfinite(value):
        raise ValueError(value)
    return float(value)


def sent_row(text):
    """Return the row that a record stands for, found by another way; None where it is at fault."""
    try:
        content = json.loads(text)
        payload = content["payload"]
        after = payload["after"]
        cds = after.get("Stückzahl")
        value = content.get("dollar_value")
        row = {
            "order_id": sent_integer(after["id"]),
            "customer_id": sent_integer(content["customer_id"]),
            "order_ts": sent_time(payload["ts_ms"]),
            "number_of_cds": None if cds is None else sent_integer(cds),
            "dollar_value": None if value is None else sent_double(value),
        }
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return row if 1 < row["order_ts"].year < 9999 else None


class Topics:
    """Topics of the mock cluster, and the installation that reads them."""

    def __init__(self, settings):
        self.settings = settings
        self.producer = Producer(client_settings(settings, acks="all"))
        self.names = iter(f"orders-{number}" for number in range(99))

    def written(self, texts):
        """Write records to a new topic, one after the other; return its name."""
        name = next(self.names)
        admin = AdminClient(client_settings(self.settings))
        admin.list_topics(name, timeout=30)
        admin.list_topics(name + DEAD_LETTERS, timeout=30)
        for number, text in enumerate(texts):
            self.producer.produce(name, text or None, partition=number % 2)
        assert self.producer.flush(30) == 0
        return name

    def quarantine(self, dataset):
        """Return the records in quarantine by partition and offset."""
        rows = quarantine_table(self.settings, dataset).read()["row"].to_pylist()
        entries = [json.loads(row) for row in rows]
        return {
            (entry["partition"], entry["offset"]): entry
            for entry in entries
            if entry.get("topic") == dataset.topic.name
        }


@pytest.fixture
def topics(applied, suite, monkeypatch):
    suite()
    # A read of more waits for a second at the end of each partition.
    monkeypatch.setattr(kafka, "READ_COUNT", 1)
    with mock_kafka() as brokers:
        # A group takes a second to share its partitions anew.
        client = {"session_timeout_ms": 1_000, "heartbeat_interval_ms": 100}
        update = {"events_url": f"kafka://{brokers}", "kafka": client}
        yield Topics(applied.model_copy(update=update))


def is_in_table_or_quarantine(topics, dataset, texts):
    """Hold what a dataset has against what was sent; return how many rows the table has."""
    rows = raw_table(topics.settings, dataset).read(columns=ORDERS.schema.names)
    rows_by_id = {row["order_id"]: row for row in rows.to_pylist()}
    aside = topics.quarantine(dataset)
    last_rows = {}
    places = {}
    for number, text in enumerate(texts):
        if not text:  # a tombstone
            continue
        place = (number % 2, number // 2)
        row = sent_row(text)
        if row is None:
            places[place] = text
        else:
            last_rows[row["order_id"]] = row
    assert aside.keys() == places.keys()
    for place, text in places.items():
        assert aside[place]["events"] == text.decode(errors="replace")
    aside_rows = quarantine_table(topics.settings, dataset).read()["row"].to_pylist()
    for row in map(json.loads, aside_rows):
        if "topic" not in row and row["order_id"] in last_rows:
            # No view can be computed from it, as of a sum above 2**53.
            sent = last_rows.pop(row["order_id"])
            assert row["dollar_value"] == sent["dollar_value"]
            assert row["order_id"] not in rows_by_id
    assert rows_by_id == last_rows
    return len(rows_by_id)


def ingest_all(settings, dataset):
    """Land the records of a topic, however many cannot be read."""
    unreadable = {}
    rows = pull(settings, dataset, AS_OF, None, unreadable).read_all()
    land(settings, dataset, rows.to_reader(), AS_OF)
    entries = quarantine_entries([*unreadable], [*unreadable.values()], AS_OF)
    quarantine(quarantine_table(settings, dataset), entries)


@pytest.mark.parametrize("read_all", [consume_all, ingest_all])
@examples(
    max_examples=3,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(drawn=st.lists(RECORDS, min_size=40, max_size=60))
def test_an_odd_record_is_in_the_table_as_it_was_sent_or_in_quarantine_with_its_place(
    topics, drawn, read_all
):
    texts = [record(0)]
    for number, part in enumerate(drawn, 1):
        text = part if type(part) is bytes else record(number, *part)
        row = sent_row(text) if text else None
        # Partitions have no order among them, and an event is not ahead of its time.
        if row is None or (row["order_id"] == number and row["order_ts"] < AS_OF):
            texts.append(text)
    name = topics.written(texts)
    dataset = topic_of(name, fields=FIELDS, time_unit="ms")
    raw = raw_table(topics.settings, dataset)
    first_row = FIRST | {"ingested_at": AS_OF}
    raw.merge(
        pa.Table.from_pylist([first_row], raw.schema),
        dataset.key,
        dataset.schema.names,
    )
    raw.remove(raw.read(), dataset.key)
    read_all(topics.settings, dataset)
    assert is_in_table_or_quarantine(topics, dataset, texts) >= 1
    # Read a second time, nothing changes: nothing is in quarantine twice.
    entries = quarantine_table(topics.settings, dataset).read().num_rows
    ingest_all(topics.settings, dataset)
    assert quarantine_table(topics.settings, dataset).read().num_rows == entries


@pytest.mark.parametrize("read_all", [consume_all, ingest_all])
def test_a_record_of_a_forgotten_entity_does_not_come_back_whether_it_can_be_read_or_not(
    topics, read_all
):
    fields = FIELDS | {"customer_id": "payload.after.customer"}
    texts = []
    for number, customer in enumerate([4, 9, "9", 5]):
        after = {"id": number, "customer": customer, "Stückzahl": 1}
        payload = {"after": after, "ts_ms": 1_790_850_600_123}
        texts.append(json.dumps({"payload": payload}).encode())
    deletion = {"op": "d", "before": {"customer": 9}, "after": None}
    texts.append(json.dumps({"payload": deletion}).encode())
    texts += [
        b'{"payload": {"after": {"customer": 9',
        b'{"payload": {"after": {"customer": 5',
    ]
    name = topics.written(texts)
    dataset = topic_of(name, fields=fields, time_unit="ms")
    raw = raw_table(topics.settings, dataset)
    first_row = FIRST | {"order_id": 99, "ingested_at": AS_OF}
    first_row = pa.Table.from_pylist([first_row], raw.schema)
    raw.merge(first_row, dataset.key, dataset.schema.names)
    keep_out(topics.settings, "customer_id", 9)
    read_all(topics.settings, dataset)
    rows = raw.read().sort_by("order_id")
    assert rows["order_id"].to_pylist() == [0, 3, 99]
    aside = topics.quarantine(dataset)
    assert [entry["events"].encode() for entry in aside.values()] == [texts[-1]]


MONEY = pa.float64()
WHOLE = pa.int64()


@pytest.mark.parametrize(
    ("value", "kind", "unit", "expected"),
    [
        (Decimal("4.00"), WHOLE, None, 4),
        (Decimal(9223372036854775808), WHOLE, None, 2**63),
        (Decimal("4.1"), MONEY, None, 4.1),
        (1_790_850_600, TIMESTAMP, "s", "2026-10-01T10:30:00+00:00"),
        (-1, TIMESTAMP, "us", "1969-12-31T23:59:59.999999+00:00"),
        (
            datetime(2026, 1, 1, tzinfo=UTC),
            TIMESTAMP,
            None,
            "2026-01-01T00:00:00+00:00",
        ),
        (UUID(int=7), pa.string(), None, "00000000-0000-0000-0000-000000000007"),
        (2**80, WHOLE, None, 2**80),
        (4.0, WHOLE, None, 4.0),
        (None, WHOLE, None, None),
    ],
)
def test_a_value_becomes_json_unchanged(value, kind, unit, expected):
    factor = MICROSECONDS.get(unit)
    found = json_value(value, kind, factor)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "kind", "problem"),
    [
        (Decimal("4.00000000000000000000001"), WHOLE, "expected int64, found Decimal"),
        (Decimal("1.5"), TIMESTAMP, "found Decimal"),
        (date(2026, 1, 1), TIMESTAMP, "found date datetime.date"),
        (date(2026, 1, 1), pa.string(), "expected string, found date"),
        (datetime(2026, 1, 1), TIMESTAMP, "found datetime"),  # noqa: DTZ001  (it names no zone)
        (datetime(2026, 1, 1, tzinfo=UTC), pa.string(), "found datetime"),
        (b"7", pa.string(), "found bytes b'7'"),
        ([1], pa.string(), "found list"),
        ({"a": 1}, WHOLE, "found dict"),
        (
            "a\ud800",
            pa.string(),
            r"expected string, found half of an emoji: 'a\\ud800'",
        ),
        (7, TIMESTAMP, r"7 may be any time: name its unit: Topic\(…, time_unit=…\)"),
    ],
)
def test_a_value_that_no_column_holds_is_refused(value, kind, problem):
    with pytest.raises(ValueError, match=problem):
        json_value(value, kind, None)


@pytest.mark.parametrize(
    "number", [2**70, 253_370_764_800_000_000, -62_104_060_800_000_001]
)
def test_a_number_that_is_no_time_is_named(number):
    with pytest.raises(ValueError, match=f"a year from 2 to 9998, found {number}"):
        json_value(number, TIMESTAMP, 1)


def test_a_problem_names_column_and_field(tmp_path):
    settings = new_settings(tmp_path, events_url="kafka://127.0.0.1:1")
    read = record_reader(settings, topic_of(fields=FIELDS))
    with pytest.raises(ValueError, match=r"column order_ts, field payload.ts_ms: 179"):
        read(record(1))
    assert read(b"") == b"[]"  # a tombstone
    with pytest.raises(ValueError, match=r"field payload.after.id: expected an object"):
        read(b'{"payload": 7}')


def test_a_topic_that_cannot_be_read_says_so_at_the_start(tmp_path):
    settings = new_settings(tmp_path)
    with pytest.raises(DataError, match=r"orders needs a Kafka: set GYRE_EVENTS_URL"):
        record_reader(settings, topic_of())
    settings = new_settings(tmp_path, events_url="kafka://127.0.0.1:1")
    dataset = topic_of(fields={"price": "after.price"})
    with pytest.raises(DataError, match=r"expected fields of .*order_id.*found price"):
        record_reader(settings, dataset)
    with pytest.raises(DataError, match=r"set GYRE_SCHEMA_REGISTRY__URL"):
        record_reader(settings, topic_of(format="avro"))
    registry = {"url": "http://127.0.0.1:1", "colour": "red"}
    wrong = settings.model_copy(update={"schema_registry": registry})
    with pytest.raises(SettingsError, match=r"^GYRE_SCHEMA_REGISTRY: .*colour"):
        record_reader(wrong, topic_of(format="avro"))


def test_a_registry_that_does_not_answer_sets_no_record_aside(tmp_path):
    settings = new_settings(
        tmp_path,
        events_url="kafka://127.0.0.1:1",
        schema_registry={"url": f"http://127.0.0.1:{unused_port()}"},
    )
    for kind in ("avro", "json-schema"):
        read = record_reader(settings, topic_of(format=kind))
        with pytest.raises(BrokerUnavailableError, match=r"Schema registry: .*refused"):
            read(b"\0\0\0\0\1{}")
        with pytest.raises(ValueError, match=r"Invalid|framing|magic|Unexpected"):
            read(b"{}")


def test_a_topic_alone_is_ingested_once_and_from_then_on_by_the_consumer(
    topics, monkeypatch
):
    monkeypatch.setattr("feature_engine.ingest.landing.SINGLE_ROWS", 5)
    monkeypatch.setattr("feature_engine.ingest.source.UNREADABLE_ROWS", 2)
    deletion = record(1, removed="after")
    texts = [record(number) for number in range(6)]
    texts += [
        b"",
        b"",
        b"",
        deletion,
        b"",
        b"{",
    ]  # more tombstones than may be set aside
    name = topics.written(texts)
    dataset = topic_of(name, fields=FIELDS, time_unit="ms")
    monkeypatch.setattr(orders, "ORDERS", dataset)
    first = ingest(topics.settings, "orders", AS_OF)
    assert (first.inserted, first.quarantined, first.warnings) == (6, 2, ())
    assert topics.quarantine(dataset).keys() == {(1, 4), (1, 5)}
    group = client_settings(topics.settings, group_id="gyre.orders")
    with closing(Consumer(group)) as consumer:
        (committed,) = consumer.committed([TopicPartition(name, 0)], timeout=30)
    assert committed.offset < 0
    topics.producer.produce(name, record(9), partition=0)
    assert topics.producer.flush(30) == 0
    later = ingest(topics.settings, "orders", AS_OF + HOUR)
    assert (later.inserted, later.warnings) == (0, ())
    whole = ingest(topics.settings, "orders", AS_OF + 2 * HOUR, full=True)
    assert (whole.inserted, whole.replaced, whole.quarantined) == (1, 0, 0)
    with whole_history(topics.settings, SPEC, AS_OF) as (history, _):
        assert raw_table(history, dataset).read().num_rows == 7
    assert place(topics.settings, dataset) == f"topic {name}"


def test_a_time_needs_a_topic(applied):
    with pytest.raises(DataError, match=r"topic: name it in .*orders.py: topic=Topic"):
        ingest(applied, "orders", AS_OF, topic_from=AS_OF)


def test_a_topic_of_other_records_changes_nothing(topics, monkeypatch):
    monkeypatch.setattr("feature_engine.ingest.landing.SINGLE_ROWS", 5)
    name = topics.written([record(1)] * 2 + [b"{}"] * 8)
    dataset = topic_of(name, fields=FIELDS, time_unit="ms")
    monkeypatch.setattr(orders, "ORDERS", dataset)
    stopped = f"the batch of topic {name} was stopped.*8 of 10 rows cannot be read"
    with pytest.raises(BatchRejectedError, match=stopped):
        ingest(topics.settings, "orders", AS_OF)
    assert not raw_table(topics.settings, dataset).exists


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "__debezium_unavailable_value"}, "Debezium left out a large value"),
        ({"name": "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="}, "REPLICA IDENTITY FULL"),
        ({"number_of_cds": "__debezium_unavailable_value"}, "Debezium left out"),
        ({"__deleted": "true"}, "a deletion, and Gyre deletes no row"),
        ({"__deleted": True}, "a deletion, and Gyre deletes no row"),
    ],
)
def test_what_debezium_writes_beside_values_is_no_value(tmp_path, change, reason):
    settings = new_settings(tmp_path, events_url="kafka://127.0.0.1:1")
    named = replace(
        topic_of(), schema=ORDERS.schema.append(pa.field("name", pa.string()))
    )
    read = record_reader(settings, named)
    row = FIRST | {"order_ts": "2026-10-01T10:30:00Z", "name": "x"}
    assert json.loads(read(json.dumps(row | {"__deleted": "false"}).encode())) == [row]
    with pytest.raises(ValueError, match=reason):
        read(json.dumps(row | change).encode())


@pytest.mark.parametrize(
    ("place", "record", "field"),
    [
        ("", {"__deleted": "TRUE"}, "__deleted"),
        ("", {"__deleted": 1}, "__deleted"),
        ("", {"__op": "d"}, "__op"),
        ("payload", {"payload": {"__deleted": "true"}}, "payload.__deleted"),
        ("payload", {"payload": {"__deleted": True}}, "payload.__deleted"),
        ("payload", {"payload": {"__op": "d"}}, "payload.__op"),
        ("payload.after", {"payload": {"after": {"__deleted": "true"}}},
         "payload.after.__deleted"),
        ("payload.after", {"payload": {"__deleted": "true"}}, "payload.__deleted"),
        ("payload.after", {"__deleted": "true"}, "__deleted"),
        ("payload.before", {"payload": {"op": "d", "after": None}}, "payload.op"),
    ],
)  # fmt: skip
def test_a_deletion_is_no_row_wherever_its_mark_is(tmp_path, place, record, field):
    settings = new_settings(tmp_path, events_url="kafka://127.0.0.1:1")
    outer = place.split(".") if place else []
    fields = {name: ".".join([*outer, name]) for name in ORDERS.schema.names}
    read = record_reader(settings, topic_of(fields=fields))
    row = FIRST | {"order_ts": "2026-10-01T10:30:00Z"}
    change = row | {"__deleted": "false", "__op": "u", "op": "d"}
    for name in reversed(outer):
        change = {name: change, "op": "u", "__deleted": None}
    assert json.loads(read(json.dumps(change).encode())) == [row]
    deletion = with_fields(change, record)
    reason = f"field {re.escape(field)}: a deletion, and Gyre deletes no row"
    with pytest.raises(ValueError, match=f"^{reason}"):
        read(json.dumps(deletion).encode())


def with_fields(record, changes):
    """Return a record with other fields, also in its objects."""
    changed = dict(record)
    for name, value in changes.items():
        if isinstance(value, dict):
            changed[name] = with_fields(record[name], value)
        else:
            changed[name] = value
    return changed


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b'{"order_id": 1, "order_id": 2}', "a field is there twice: 'order_id'"),
        (b'{"payload": {"a": 1, "b": 2, "b": 2}}', "a field is there twice: 'b'"),
        (b'{"order_id": NaN}', "JSON, which has no NaN"),
        (b'{"order_id": 4503599627370496.25}', "column order_id, .*expected int64"),
        (b'{"order_id": 1e-999999999}', "column order_id, .*expected int64, found"),
        (b"[" * 99_999, "too many levels"),
    ],
)
def test_a_record_that_would_lose_a_value_is_refused(tmp_path, record, reason):
    settings = new_settings(tmp_path, events_url="kafka://127.0.0.1:1")
    with pytest.raises(ValueError, match=reason):
        record_reader(settings, topic_of())(record)
