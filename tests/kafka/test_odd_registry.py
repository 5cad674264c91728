"""Topics with the ids of a schema registry: each record is in the table as it was sent, or aside."""

import gc
import json
import os

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from core.connectors import kafka
from feature_repo import rules
from tests.conftest import new_settings
from tests.support.feature_engine.odd.registry_topics import AvroTopic, SchemaTopic
from tests.support.feature_engine.odd.topic_reader import TopicReader
from tests.support.stores.kafka import mock_kafka
from tests.support.stores.registry import registry_server

pytestmark = [
    pytest.mark.kafka,
    # A reader lives as long as its process, and so do its connections.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FIRST = int(os.environ["ODD_SEED"])


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with registry_server(tmp_path_factory.mktemp("registry") / "log") as address:
        yield address


@pytest.mark.parametrize("topic_type", [AvroTopic, SchemaTopic])
@pytest.mark.parametrize("seed", [*range(10), *range(FIRST, FIRST + 10)])
def test_a_record_of_a_schema_is_in_the_table_as_it_is_or_in_quarantine(
    tmp_path, monkeypatch, registry, topic_type, seed
):
    monkeypatch.setattr(rules, "EXPECTATIONS", tmp_path)
    suite = json.dumps({"name": "odd", "expectations": []})
    (tmp_path / "odd.json").write_text(suite)
    # A read of more waits for a second at the end of each partition.
    monkeypatch.setattr(kafka, "READ_COUNT", 1)
    topic = topic_type(seed)
    with SchemaRegistryClient({"url": registry}) as client:
        schema = Schema(json.dumps({**topic.schema}), topic.kind)
        topic.number = client.register_schema(topic.name, schema)
    with mock_kafka() as brokers:
        settings = new_settings(
            tmp_path / "home",
            events_url=f"kafka://{brokers}",
            schema_registry={"url": registry},
        )
        reader = TopicReader(settings, topic)
        dataset = topic.dataset("odd")
        if reader.is_stopped():
            reader.check_stop(dataset)
        else:
            reader.check_ingest(dataset)
    gc.collect()
