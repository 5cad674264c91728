"""An installation that reads an odd topic, held against what the topic's own client shows."""

import json
import time
from base64 import b64decode
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from core.connectors.kafka import client_settings
from core.errors import BatchRejectedError
from feature_engine.events.kafka_broker import DEAD_LETTERS
from feature_engine.ingest.landing import land
from feature_engine.ingest.quarantine import quarantine_table
from feature_engine.ingest.source import pull
from feature_engine.offline.raw import raw_table
from tests.conftest import AS_OF
from tests.support.feature_engine.installation import consume_all
from tests.support.feature_engine.odd.topics import (
    NO_OBJECT,
    PARTITIONS,
    PLACEHOLDERS,
    Shown,
)

LATE = datetime(9998, 12, 31, 23, 59, 59, 999_999, UTC)
"""No record is ahead of it."""
ANY_VALUE = {"int": 0, "float": 0.0, "text": "", "bool": False, "time": AS_OF}
MOST_ALONE = 19
"""Records that stop no ingest if they cannot be read; more than that, if they are over half."""


class TopicReader:
    """An installation that reads an odd topic by an ingest and by the consumer.

    Args:
        settings: Settings of the installation, with the mock cluster.
        topic: An OddTopic.

    Attributes:
        shown: The records as the topic's own client shows them, by partition and offset.
        fates: What must come of each record, by partition and offset.

    """

    def __init__(self, settings, topic):
        self.settings = settings
        self.topic = topic
        self._write()
        self.shown = shown(settings, topic.name)
        self.fates = {
            (record.partition, record.offset): topic.fate(record.content)
            for record in self.shown
        }

    def _write(self):
        name = self.topic.name
        admin = AdminClient(client_settings(self.settings))
        admin.list_topics(name, timeout=30)
        admin.list_topics(name + DEAD_LETTERS, timeout=30)
        producer = Producer(client_settings(self.settings, acks="all"))
        now = int(time.time() * 1000)
        for partition, sent, content in self.topic.records(now):
            producer.produce(name, content, partition=partition, timestamp=sent)
        assert producer.flush(30) == 0

    def ingest(self, dataset):
        unreadable = {}
        rows = pull(self.settings, dataset, LATE, unreadable=unreadable)
        return land(self.settings, dataset, rows, LATE, unreadable)

    def consume(self, dataset):
        """Consume the topic from its beginning; there is a table, as after a first ingest."""
        raw = raw_table(self.settings, dataset)
        if not raw.exists:
            row = {name: ANY_VALUE[kind] for name, kind in self.topic.kinds.items()}
            rows = pa.Table.from_pylist([row | {"ingested_at": AS_OF}], raw.schema)
            raw.merge(rows, dataset.key, dataset.schema.names)
            raw.remove(rows, dataset.key)
        consume_all(self.settings, dataset)

    def check_letters(self):
        """Hold the dead letters of a consumer against the records that cannot be read."""
        letters = shown(self.settings, self.topic.name + DEAD_LETTERS)
        contents = [
            record.content
            for record in self.shown
            if self.fates[record.partition, record.offset].faults is not None
        ]
        letter_contents = [letter.content for letter in letters]
        assert sorted(letter_contents) == sorted(contents)

    def check_ingest(self, dataset):
        """Ingest twice: the second time changes nothing."""
        self.ingest(dataset)
        self.check(dataset, self.by_place)
        contents = self.contents(dataset)
        report = self.ingest(dataset)
        assert (report.inserted, report.replaced, report.quarantined) == (0, 0, 0)
        assert self.contents(dataset) == contents

    def check_stop(self, dataset):
        """Ingest a topic of which most records cannot be read: nothing is changed."""
        with pytest.raises(BatchRejectedError, match="rows cannot be read"):
            self.ingest(dataset)
        assert not raw_table(self.settings, dataset).exists
        assert not quarantine_table(self.settings, dataset).exists

    def by_place(self, record, _arrival):
        """Return the rank of a record in an ingest."""
        return (record.partition, record.offset)

    def by_arrival(self, _record, arrival):
        """Return the rank of a record for the consumer."""
        return () if self.topic.version else (arrival,)

    def by_any(self, _record, _arrival):
        """Return the same rank for each record: of each partition the last may count."""
        return ()

    def is_stopped(self):
        """Whether an ingest stops, as most records cannot be read."""
        fates = self.fates.values()
        row_count = sum(fate.row is not None for fate in fates)
        fault_count = sum(fate.faults is not None for fate in fates)
        return fault_count > max(MOST_ALONE, row_count)

    def contents(self, dataset):
        """Return texts of the rows of the table, and of the entries of quarantine."""
        rows = raw_table(self.settings, dataset).read(columns=dataset.schema.names)
        entries = quarantine_table(self.settings, dataset).read()
        row_texts = [str(texts_of(row)) for row in rows.to_pylist()]
        entry_texts = [str(entry) for entry in entries.to_pylist()]
        return sorted(row_texts), sorted(entry_texts)

    def check(self, dataset, order):
        """Hold table and quarantine against the records.

        Args:
            dataset: What has read them.
            order: See `OddTopic.expected`.

        """
        raw = raw_table(self.settings, dataset)
        rows = raw.read(columns=dataset.schema.names).to_pylist()
        rows_by_key = {tuple(row[name] for name in dataset.key): row for row in rows}
        assert len(rows_by_key) == len(rows)
        expected = {
            key: [*map(texts_of, candidates)]
            for key, candidates in self.topic.expected(self.shown, order).items()
        }
        other_keys = rows_by_key.keys() ^ expected.keys()
        assert not other_keys, other_keys
        differences = [
            (texts_of(row), expected[key])
            for key, row in rows_by_key.items()
            if texts_of(row) not in expected[key]
        ]
        assert not differences, differences
        self._check_quarantine(dataset)

    def _check_quarantine(self, dataset):
        contents = {
            (record.partition, record.offset): record.content for record in self.shown
        }
        entries = quarantine_table(self.settings, dataset).read().to_pylist()
        places = []
        for entry in entries:
            row = json.loads(entry["row"])
            place = (row["partition"], row["offset"])
            places.append(place)
            assert row["topic"] == self.topic.name
            assert row["events"] == contents[place].decode(errors="replace")
            if "base64" in row:
                assert b64decode(row["base64"]) == contents[place]
            else:
                assert row["events"].encode() == contents[place]
            faults = self.fates[place].faults
            assert self._is_named(entry["rules"], faults), (entry["rules"], faults)
        assert len(places) == len({*places})
        fault_places = {
            place for place, fate in self.fates.items() if fate.faults is not None
        }
        other_places = fault_places ^ {*places}
        assert not other_places, [self.fates[place] for place in other_places]

    def _is_named(self, reason, faults):
        """Whether a reason names a column at fault with its value, if a column is at fault."""
        if not faults:
            return bool(reason)
        return any(
            f"column {name}, field " in reason and is_shown(value, reason)
            for name, value in faults.items()
        )


def shown(settings, name):
    """Return the records of a topic as its own client shows them, by partition and offset."""
    options = {"group_id": "reader", "enable_partition_eof": True}
    partitions = [TopicPartition(name, number, 0) for number in range(PARTITIONS)]
    records = []
    ends = set()
    with closing(Consumer(client_settings(settings, **options))) as consumer:
        consumer.assign(partitions)
        while len(ends) < PARTITIONS:
            message = consumer.poll(30)
            if message.error():
                assert message.error().name() == "_PARTITION_EOF"
                ends.add(message.partition())
            else:
                place = (message.partition(), message.offset())
                sent = message.timestamp()[1]
                records.append(Shown(*place, sent, message.value()))
    return sorted(records, key=lambda record: (record.partition, record.offset))


def texts_of(row):
    """Return texts of values, which tell -0.0 from 0.0; times are of one zone."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else repr(value)
        for name, value in row.items()
    }


def is_shown(value, reason):
    """Whether a reason shows a value, or the beginning of it."""
    if value in (*PLACEHOLDERS, PLACEHOLDERS[0].encode()):
        return "Debezium left out a large value" in reason
    if value is NO_OBJECT:
        return "expected an object" in reason
    if isinstance(value, datetime):
        texts = [value.isoformat()]
    elif isinstance(value, Decimal | float):
        double = float(value)
        texts = [str(value), repr(double), f"{double:.0f}"]
    else:
        texts = [repr(value)]
    return any(text[:20] in reason for text in texts)
