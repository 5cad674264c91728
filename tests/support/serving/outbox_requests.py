"""Requests to two workers that are killed, and what their outbox put on the topic."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from zlib import crc32

from confluent_kafka import Consumer, TopicPartition

from core.project import PROJECT

TOPIC = "predictions"
WORKER = PROJECT / "tests" / "support" / "serving" / "outbox_worker.py"
ENTITIES = 5
PAUSE_SECONDS = 0.001
"""Between two requests: the mock of Kafka keeps the last 5 MB of a partition."""


def environment(settings):
    """Return what a process needs to send to the topic."""
    return os.environ | {
        "GYRE_EVENTS_URL": settings.events_url,
        "GYRE_PREDICTIONS_TOPIC": TOPIC,
        "PYTHONPATH": str(PROJECT),
    }


def records(brokers):
    """Return the records of the topic, in the order of each partition."""
    group = {"group.id": "test", "enable.partition.eof": True}
    at_once = {"bootstrap.servers": brokers, "fetch.wait.max.ms": 10}
    messages = []
    with closing(Consumer(at_once | group)) as consumer:
        partitions = consumer.list_topics(TOPIC, timeout=30).topics[TOPIC].partitions
        consumer.assign([TopicPartition(TOPIC, number, 0) for number in partitions])
        ended = set()
        while len(ended) < len(partitions):
            for message in consumer.consume(1000, timeout=0.1):
                if message.error():
                    assert message.error().name() == "_PARTITION_EOF"
                    ended.add(message.partition())
                else:
                    messages.append(message)
    return messages


def ids(messages):
    return [message.key().decode() for message in messages]


class Requests:
    """Requests, one after the other, to two workers of one host.

    Attributes:
        acknowledged: Ids of the requests that were answered.

    """

    def __init__(self, settings):
        self.acknowledged = []
        self.workers = []
        self._settings = settings
        self._number = 0
        for _ in range(2):
            self.workers.append(self._start())

    def each_is_answered(self):
        for worker in range(2):
            assert self.ask(worker)

    def ask(self, worker):
        """Ask a worker; return whether it answered."""
        time.sleep(PAUSE_SECONDS)
        process = self.workers[worker]
        request_id = f"n-{self._number}"
        entity = f"e{self._number % ENTITIES}"
        self._number += 1
        answer = ""
        with suppress(BrokenPipeError):
            process.stdin.write(f"{request_id} {entity}\n")
            answer = process.stdout.readline()
        if answer != f"{request_id}\n":
            return False
        self.acknowledged.append(request_id)
        return True

    def kill(self, worker):
        self.workers[worker].kill()

    def replace(self, worker):
        self._end(self.workers[worker])
        self.workers[worker] = self._start()

    def close(self):
        for process in self.workers:
            self._end(process)

    def count_duplicates(self, messages, partition_count):
        """Return how many rows came again; every row is there, those of an entity in order."""
        counts = Counter(ids(messages))
        missing = {*self.acknowledged} - {*counts}
        assert not missing, sorted(missing)[:10]
        numbers = {}
        for message in messages:
            row = json.loads(message.value())
            partition = crc32(row["entity"].encode()) % partition_count
            assert message.partition() == partition
            number = int(row["request_id"].removeprefix("n-"))
            numbers.setdefault(row["entity"], {})[number] = None  # where it came first
        for order in numbers.values():
            assert [*order] == sorted(order)
        return counts.total() - len(counts)

    def _start(self):
        return subprocess.Popen(
            [sys.executable, str(WORKER), str(self._settings.home)],
            env=environment(self._settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def _end(self, process):
        process.kill()
        process.wait()
        process.stdout.close()
        with suppress(BrokenPipeError):  # a request that was not read
            process.stdin.close()


@contextmanager
def two_workers(settings):
    requests = Requests(settings)
    try:
        yield requests
    finally:
        requests.close()
