"""Predictions on a topic of real brokers, which are killed while two workers answer."""

import random
import sys

import pytest

from serving.prediction_log.outbox import Outbox
from tests.conftest import new_settings, wait_until
from tests.support.serving.outbox_requests import TOPIC, ids, records, two_workers
from tests.support.stores.kafka import kafka_servers

pytestmark = pytest.mark.kafka


def test_no_row_is_lost_where_the_broker_and_a_worker_are_killed(tmp_path, capsys):
    """The broker is away for a time, and a worker dies meanwhile: the one that sends, too."""
    draw = random.Random(7)
    with kafka_servers(tmp_path) as kafka:
        brokers = kafka.settings["bootstrap.servers"]
        settings = new_settings(
            tmp_path / "home", events_url=f"kafka://{brokers}", predictions_topic=TOPIC
        )
        with two_workers(settings) as requests:
            for victim in range(2):
                requests.each_is_answered()
                newest = requests.acknowledged[-1]
                wait_until("the topic", lambda key=newest: key in ids(records(brokers)))
                for _ in range(200):
                    requests.ask(draw.randrange(2))
                kafka.kill(1)
                for _ in range(200):
                    requests.ask(draw.randrange(2))
                requests.kill(victim)
                requests.replace(victim)
                for _ in range(200):
                    requests.ask(draw.randrange(2))
                kafka.restart(1)
                for _ in range(200):
                    requests.ask(draw.randrange(2))
        outbox = Outbox(settings)
        outbox.send()
        assert [*outbox.folder.glob("*.jsonl")] == []
        duplicates = requests.count_duplicates(records(brokers), partition_count=6)
        with capsys.disabled():
            sys.stdout.write(
                f"{len(requests.acknowledged)} rows, {duplicates} duplicates "
            )
        assert len(requests.acknowledged) == 2 * 802
