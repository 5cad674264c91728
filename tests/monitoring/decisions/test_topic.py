"""Decisions on a topic, against kills and a Kafka that is away."""

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from zlib import crc32

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from core.errors import BrokerUnavailableError
from core.project import PROJECT
from monitoring.decisions.store import store_decision
from monitoring.decisions.topic import send_decisions
from tests.conftest import new_settings, unused_port
from tests.support.monitoring.log_lines import NOON
from tests.support.monitoring.year import decision_row
from tests.support.stores.kafka import mock_kafka
from tests.support.tools.preloaded import commands_folder

TOPIC = "decisions"
HOUR = timedelta(hours=1)
DECISION = decision_row(
    model="churn", version="1", as_of=NOON, verdict="bad", cause="drift of version 1",
    words="bad: spend: PSI 0.31",
)  # fmt: skip
AT_CURSOR = """
def kill(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("topics/churn"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
"""
AT_FIRST_RECORD = """
def kill(frame, event, function):
    if event == "c_call" and function.__name__ == "produce":
        os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(kill)
"""
KILLED = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from core.settings import load_settings
from monitoring.decisions.topic import send_decisions
{kill}
send_decisions(
    load_settings(home=Path({home!r})), "churn", datetime.fromisoformat({as_of!r})
)
"""


@pytest.fixture
def settings(tmp_path, kafka):
    return new_settings(tmp_path, events_url=f"kafka://{kafka}", decisions_topic=TOPIC)


@pytest.fixture
def kafka():
    with mock_kafka() as brokers:
        Producer({"bootstrap.servers": brokers}).list_topics(TOPIC, timeout=30)
        yield brokers


def records(brokers, model="churn"):
    """Return the records of a model, whose partition is that of its name."""
    group = {"group.id": "test", "enable.partition.eof": True}
    at_once = {"bootstrap.servers": brokers, "fetch.wait.max.ms": 10}
    messages = []
    with closing(Consumer(at_once | group)) as consumer:
        partition = crc32(model.encode()) % 4
        consumer.assign([TopicPartition(TOPIC, partition, 0)])
        message = consumer.poll(30)
        while not message.error():
            messages.append(message)
            message = consumer.poll(30)
    return messages


def moments(brokers, model="churn"):
    keys = [message.key().decode() for message in records(brokers, model)]
    return [datetime.fromisoformat(key.removeprefix(f"{model}/")) for key in keys]


def decide(settings, *hours, model="churn"):
    """Store a decision of each hour."""
    for hour in hours:
        moment = NOON + hour * HOUR
        store_decision(settings, replace(DECISION, model=model, as_of=moment))


def test_each_decision_is_a_record_in_order(settings, kafka):
    decide(settings, 0, 1)
    send_decisions(settings, "churn", NOON + HOUR)
    assert moments(kafka) == [NOON, NOON + HOUR]
    record = records(kafka)[0]
    row = json.loads(record.value())
    assert datetime.fromisoformat(row["as_of"]) == NOON
    assert row | {"as_of": NOON} == asdict(DECISION)
    assert record.timestamp()[1] == int(NOON.timestamp() * 1000)
    decide(settings, 2)
    send_decisions(settings, "churn", NOON + 2 * HOUR)
    assert moments(kafka) == [NOON, NOON + HOUR, NOON + 2 * HOUR]


def test_the_decision_of_a_run_that_is_older_or_repeated_is_sent_too(settings, kafka):
    decide(settings, 2)
    send_decisions(settings, "churn", NOON + 2 * HOUR)
    decide(settings, 1)
    send_decisions(settings, "churn", NOON + HOUR)
    send_decisions(settings, "churn", NOON + HOUR)
    assert moments(kafka) == [NOON + 2 * HOUR, NOON + HOUR, NOON + HOUR]
    decide(settings, 3)
    send_decisions(settings, "churn", NOON + 3 * HOUR)
    assert moments(kafka)[3:] == [NOON + 3 * HOUR]


def send_until_killed(settings, kill, as_of):
    """Send the decision of a run in a process that is killed on the way."""
    code = KILLED.format(kill=kill, home=str(settings.home), as_of=as_of.isoformat())
    variables = {
        "GYRE_EVENTS_URL": settings.events_url,
        "GYRE_DECISIONS_TOPIC": TOPIC,
        "PYTHONPATH": str(PROJECT),
    }
    python = commands_folder() / "python"
    killed = subprocess.run(
        [python, "-c", code], env=os.environ | variables, check=False
    )
    assert killed.returncode == 128 + signal.SIGKILL


def test_a_run_that_is_killed_after_the_delivery_misses_nothing(settings, kafka):
    decide(settings, 0, 1)
    send_until_killed(settings, AT_CURSOR, NOON + HOUR)
    assert moments(kafka) == [NOON, NOON + HOUR]
    decide(settings, 2)
    send_decisions(settings, "churn", NOON + 2 * HOUR)
    assert moments(kafka)[2:] == [NOON, NOON + HOUR, NOON + 2 * HOUR]


@pytest.mark.parametrize("hour", [1, 2])
def test_a_run_that_is_older_or_repeated_and_killed_is_sent_by_the_next_one(
    settings, kafka, hour
):
    decide(settings, 0, 2)
    send_decisions(settings, "churn", NOON + 2 * HOUR)
    decide(settings, hour)
    send_until_killed(settings, AT_FIRST_RECORD, NOON + hour * HOUR)
    decide(settings, 3)
    send_decisions(settings, "churn", NOON + 3 * HOUR)
    sent = [NOON + each * HOUR for each in sorted({hour, 2, 3})]
    assert moments(kafka) == [NOON, NOON + 2 * HOUR, *sent]
    send_decisions(settings, "churn", NOON + 3 * HOUR)
    assert moments(kafka)[len(sent) + 2 :] == [NOON + 3 * HOUR]


def test_a_newer_and_an_older_decision_wait_for_a_kafka_that_is_away(settings, kafka):
    """Each of a model, at once: a call waits five seconds for a broker."""
    decide(settings, 2, model="spend")
    send_decisions(settings, "spend", NOON + 2 * HOUR)
    decide(settings, 1, model="spend")
    decide(settings, 0, model="churn")
    away = f"kafka://127.0.0.1:{unused_port()}"
    without_kafka = settings.model_copy(update={"events_url": away})
    with ThreadPoolExecutor(2) as threads:
        older = threads.submit(send_decisions, without_kafka, "spend", NOON + HOUR)
        newer = threads.submit(send_decisions, without_kafka, "churn", NOON)
        for sent in (older, newer):
            with pytest.raises(BrokerUnavailableError, match="Kafka"):
                sent.result()
    decide(settings, 3, model="spend")
    send_decisions(settings, "spend", NOON + 3 * HOUR)
    assert moments(kafka, "spend") == [NOON + hour * HOUR for hour in (2, 1, 2, 3)]
    decide(settings, 1, model="churn")
    send_decisions(settings, "churn", NOON + HOUR)
    assert moments(kafka, "churn") == [NOON, NOON + HOUR]
