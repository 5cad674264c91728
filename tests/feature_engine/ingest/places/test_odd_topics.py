"""Topics as teams write them: each record is in the table as it was sent, or in quarantine."""

import json
import os

import pytest

from core.connectors import kafka
from feature_repo import rules
from tests.support.feature_engine.odd.topic_reader import TopicReader
from tests.support.feature_engine.odd.topics import OddTopic
from tests.support.stores.kafka import mock_kafka

pytestmark = pytest.mark.journey

FIRST = int(os.environ["ODD_SEED"])
NIGHT = [
    pytest.param(number, marks=pytest.mark.nightly)
    for number in range(FIRST, FIRST + 100)
]

QUICK_CLIENT = {
    "session_timeout_ms": 1_000,
    "heartbeat_interval_ms": 100,
    # A question about offsets waits for the one for records.
    "fetch_wait_max_ms": 10,
}


@pytest.fixture
def settings(applied, tmp_path, monkeypatch):
    suite = json.dumps({"name": "odd", "expectations": []})
    (tmp_path / "odd.json").write_text(suite)
    monkeypatch.setattr(rules, "EXPECTATIONS", tmp_path)
    # A read of more waits for a second at the end of each partition.
    monkeypatch.setattr(kafka, "READ_COUNT", 1)
    with mock_kafka() as brokers:
        update = {"events_url": f"kafka://{brokers}", "kafka": QUICK_CLIENT}
        yield applied.model_copy(update=update)


@pytest.mark.parametrize("seed", [*range(10), *NIGHT])
def test_a_record_of_an_odd_topic_is_in_the_table_as_it_is_or_in_quarantine(
    settings, seed
):
    reader = TopicReader(settings, OddTopic(seed))
    dataset = reader.topic.dataset("odd")
    if reader.topic.chance.random() < 0.5:
        check_consumer(reader, dataset)
    elif reader.is_stopped():
        reader.check_stop(dataset)
    else:
        reader.check_ingest(dataset)
        # From a first ingest on, the consumer reads the topic from its beginning.
        reader.consume(dataset)
        reader.check(dataset, reader.by_any)


def check_consumer(reader, dataset):
    reader.consume(dataset)
    reader.check(dataset, reader.by_arrival)
    reader.check_letters()
    entries = reader.contents(dataset)[1]
    # What quarantine has already stops no ingest.
    reader.ingest(dataset)
    reader.check(dataset, reader.by_place)
    assert reader.contents(dataset)[1] == entries
