"""`gyre ingest --topic-from` on a real broker: the records since a time, each once."""

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from core.connectors.kafka import client_settings
from feature_engine.ingest.pipeline import ingest
from feature_engine.ingest.quarantine import quarantine_table
from feature_engine.offline.raw import raw_table
from feature_repo.datasets import orders
from feature_repo.definition import Topic
from tests.conftest import AS_OF
from tests.support.feature_engine.installation import (
    applied,  # noqa: F401  (a fixture)
    template,  # noqa: F401  (a fixture)
)
from tests.support.feature_engine.shop import (
    DAY,
    HOUR,
    ORDERS,
    order,
    shop,  # noqa: F401  (a fixture)
)
from tests.support.stores.kafka import kafka_servers

pytestmark = pytest.mark.kafka


def test_a_topic_is_read_from_a_time_on_beside_a_source(
    shop,
    tmp_path,
    monkeypatch,
):
    dataset = replace(ORDERS, topic=Topic("team.orders"))
    monkeypatch.setattr(orders, "ORDERS", dataset)
    shop.has(order(1, 1, AS_OF - 10 * DAY, 5.0))
    folder = tmp_path / "kafka"
    folder.mkdir()
    with kafka_servers(folder) as kafka:
        # The tests' time is 2099, which a broker refuses.
        kafka.create_topic("team.orders", 2, message_timestamp_after_max_ms=str(2**62))
        address = kafka.settings["bootstrap.servers"]
        settings = shop.settings.model_copy(update={"events_url": f"kafka://{address}"})
        shop.settings = settings
        shop.ingest(AS_OF)
        producer = Producer(kafka.settings)

        def write(at, text, partition=0):
            milliseconds = int(at.timestamp() * 1000)
            producer.produce(
                "team.orders", text, partition=partition, timestamp=milliseconds
            )

        for number in range(2, 2_502):
            row = order(number, 1, AS_OF - 2 * DAY)
            text = json.dumps(row, default=datetime.isoformat)
            write(AS_OF - (DAY if number % 2 else HOUR), text, number % 2)
        write(AS_OF - HOUR, None)
        write(AS_OF - HOUR, json.dumps({"order_id": "7"}))
        corrected = order(2, 1, AS_OF - 2 * DAY, 11.0)
        write(AS_OF - HOUR, json.dumps(corrected, default=datetime.isoformat))
        assert producer.flush(60) == 0
        report = ingest(settings, "orders", AS_OF, topic_from=AS_OF - 2 * HOUR)
        assert (report.inserted, report.replaced, report.quarantined) == (1250, 0, 1)
        rows = {
            row["order_id"]: row
            for row in raw_table(settings, dataset).read().to_pylist()
        }
        assert rows.keys() == {1, *range(2, 2_502, 2)}
        assert rows[2]["dollar_value"] == 11.0
        aside = quarantine_table(settings, dataset).read()["row"].to_pylist()
        places = {
            (entry["topic"], entry["partition"], entry["offset"])
            for entry in map(json.loads, aside)
        }
        # At 1250 is a tombstone, which has no row.
        assert places == {("team.orders", 0, 1251)}
        again = ingest(settings, "orders", AS_OF + HOUR, topic_from=AS_OF - 2 * HOUR)
        assert (again.inserted, again.replaced, again.quarantined) == (0, 0, 0)
        older = ingest(
            settings,
            "orders",
            AS_OF + HOUR,
            topic_from=datetime(2000, 1, 1, tzinfo=UTC),
        )
        assert older.inserted == 1250
        nothing = ingest(settings, "orders", AS_OF + HOUR, topic_from=AS_OF + HOUR)
        assert (nothing.inserted, nothing.warnings) == (
            0,
            ("topic team.orders delivered no rows",),
        )
        group = client_settings(settings, group_id="gyre.orders")
        partitions = [TopicPartition("team.orders", number) for number in (0, 1)]
        with closing(Consumer(group)) as consumer:
            committed = consumer.committed(partitions, timeout=30)
        assert [place.offset < 0 for place in committed] == [True, True]
