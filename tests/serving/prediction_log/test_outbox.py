"""Predictions on a topic, against kills and a Kafka that is away."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from zlib import crc32

import httpx
import psutil
import pytest
from confluent_kafka import Producer

from core.errors import SettingsError
from core.project import PROJECT
from core.settings import load_settings
from serving.metrics import OUTBOX_BYTES, OUTBOX_FAILURES
from serving.prediction_log.append_log import AppendLog
from serving.prediction_log.outbox import FILES_AT_ONCE, Outbox
from tests.conftest import at_most, new_settings, unused_port, wait_until
from tests.serving.conftest import counted
from tests.support.monitoring.log_lines import NOON, answer
from tests.support.serving.outbox_requests import (
    TOPIC,
    environment,
    ids,
    records,
    two_workers,
)
from tests.support.stores.kafka import mock_kafka
from tests.support.tools.preloaded import commands_folder

pytestmark = pytest.mark.journey

MOCK = """
import sys
from tests.support.stores.kafka import mock_kafka
with mock_kafka() as brokers:
    print(brokers, flush=True)
    sys.stdin.read()
"""
KILLED_AT_UNLINK = """
import os, signal, sys
from pathlib import Path
from core.settings import load_settings
from serving.prediction_log.outbox import Outbox

def kill(event, arguments):
    if event == "os.remove" and str(arguments[0]).endswith(".jsonl"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
Outbox(load_settings(home=Path({home!r}))).send()
"""


@pytest.fixture
def settings(tmp_path, kafka):
    return new_settings(
        tmp_path, events_url=f"kafka://{kafka}", predictions_topic=TOPIC
    )


@pytest.fixture
def kafka():
    with mock_kafka() as brokers:
        make_topic(brokers)
        yield brokers


def workers(process):
    """Return the processes of a server that answer."""
    found = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error):  # it has ended
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def make_topic(brokers):
    """Make the topic, as the mock does for whoever asks."""
    Producer({"bootstrap.servers": brokers}).list_topics(TOPIC, timeout=30)


def log_of(settings, outbox):
    """Return an open log whose files the outbox has, too."""
    log = AppendLog(settings.home / "serving" / "log", "predictions", outbox.folder)
    log.open()
    return log


def test_no_acknowledged_row_is_lost_where_workers_are_killed(settings, kafka, capsys):
    """At ten drawn moments, each five times; order holds by first appearance."""
    draw = random.Random(7)
    with two_workers(settings) as requests:
        for victim in draw.sample([0, 1] * 5, 10):
            requests.each_is_answered()
            kill = threading.Timer(draw.uniform(0.1, 0.8), requests.kill, [victim])
            kill.start()
            while kill.is_alive():
                requests.ask(draw.randrange(2))
            requests.replace(victim)
    outbox = Outbox(settings)
    outbox.send()
    assert [*outbox.folder.glob("*.jsonl")] == []
    duplicates = requests.count_duplicates(records(kafka), partition_count=4)
    with capsys.disabled():
        sys.stdout.write(f"{len(requests.acknowledged)} rows, {duplicates} duplicates ")
    assert len(requests.acknowledged) > 1000
    assert duplicates > 0  # else no kill met a sender with rows of an unfinished file


def test_rows_of_a_sender_that_is_killed_after_the_delivery_are_sent_again(
    settings, kafka
):
    outbox = Outbox(settings)
    log = log_of(settings, outbox)
    log.write([answer("a-0"), answer("a-1")])
    log.close()
    code = KILLED_AT_UNLINK.format(home=str(settings.home))
    python = commands_folder() / "python"
    killed = subprocess.run(
        [python, "-c", code], env=environment(settings), check=False
    )
    assert killed.returncode == 128 + signal.SIGKILL
    assert sorted(ids(records(kafka))) == ["a-0", "a-1"]
    outbox.send()
    assert sorted(ids(records(kafka))) == ["a-0", "a-0", "a-1", "a-1"]
    assert [*outbox.folder.glob("*.jsonl")] == []


def test_a_server_sends_what_its_workers_answered_also_at_its_end(
    rig, served, kafka, monkeypatch
):
    """One worker of two is killed, the one that sends or the other."""
    home = rig.second_home()
    (home / "serving" / "log").unlink()
    address = f"kafka://{kafka}"
    monkeypatch.setenv("GYRE_EVENTS_URL", address)
    monkeypatch.setenv("GYRE_PREDICTIONS_TOPIC", TOPIC)
    acknowledged = set()
    with rig.serving(
        home=home, serving_workers=2, events_url=address, predictions_topic=TOPIC
    ) as (client, process):
        rig.known_to_be_ready(client)

        def predict():
            acknowledged.add(rig.predict(client).json()["request_id"])

        for _ in range(20):
            predict()
        wait_until("the topic", lambda: acknowledged <= {*ids(records(kafka))})
        workers(process)[0].kill()
        wait_until("another", lambda: len(workers(process)) == 2)
        with suppress(httpx.TransportError):  # the connection to the killed one
            client.get("/health/live")
        rig.known_to_be_ready(client)
        predict()
        wait_until("the topic", lambda: acknowledged <= {*ids(records(kafka))})
        assert counted(client, "gyre_outbox_failures_total") == 0
        predict()
        process.terminate()
        assert process.wait(at_most(8)) == 0
    assert acknowledged <= {*ids(records(kafka))}


def test_a_server_answers_and_says_why_where_its_outbox_takes_no_link(
    rig, served, monkeypatch
):
    home = rig.second_home()
    (home / "serving" / "log").unlink()
    (home / "serving" / "outbox").touch()
    address = f"kafka://127.0.0.1:{unused_port()}"
    monkeypatch.setenv("GYRE_EVENTS_URL", address)
    monkeypatch.setenv("GYRE_PREDICTIONS_TOPIC", TOPIC)
    log = rig.folder / "serving.log"
    start = log.stat().st_size
    with rig.serving(home=home, events_url=address, predictions_topic=TOPIC) as (
        client,
        process,
    ):
        rig.known_to_be_ready(client)
        assert rig.predict(client).json()["logged"] is False
        text = "need one file system with hard links"
        detail = client.get("/status").json()["resources"]["predictions log"]["detail"]
        assert text in detail
        tried = re.compile(b"takes no predictions|Traceback")
        wait_until("a try", lambda: tried.search(log.read_bytes(), start))
        process.terminate()
        assert process.wait(at_most(8)) == 0
    lines = log.read_bytes()[start:]
    assert lines.count(text.encode()) == 1
    assert lines.count(b"takes no predictions") == 1
    assert b"Traceback" not in lines
    assert [*(home / "serving" / "log").glob(".pred*")] == []


def test_a_record_is_the_line_with_its_id_and_its_time(settings, kafka):
    outbox = Outbox(settings)
    log = log_of(settings, outbox)
    line = answer("a-0", NOON, entity=None)
    log.write([line])
    outbox.send()
    (message,) = records(kafka)
    assert json.loads(message.value()) == line
    assert message.key() == b"a-0"
    assert message.partition() == crc32(b"a-0") % 4
    assert message.timestamp()[1] == int(NOON.timestamp() * 1000)


def test_rows_are_sent_once_by_one_worker_and_a_closed_file_is_removed(settings, kafka):
    first = Outbox(settings)
    second = Outbox(settings)
    log = log_of(settings, first)
    log.write([answer("a-0")])
    first.send()
    log.write([answer("a-1")])
    second.send()
    assert ids(records(kafka)) == ["a-0"]
    first.send()
    first.send()
    assert sorted(ids(records(kafka))) == ["a-0", "a-1"]
    assert len([*first.folder.glob("*.jsonl")]) == 1
    (path,) = (settings.home / "serving" / "log").iterdir()
    path.unlink()  # as the monitor does
    log.write([answer("a-2")])
    log.close()
    first.send()
    assert len(records(kafka)) == 3
    assert [*first.folder.glob("*.jsonl")] == []


def test_a_torn_or_foreign_line_is_left_out_and_holds_nothing_up(settings, kafka):
    outbox = Outbox(settings)
    log = log_of(settings, outbox)
    log.write([answer("a-0"), {"request_id": "b-0"}, answer("a-1"), {"torn": 1}])
    (path,) = outbox.folder.glob("*.jsonl")
    os.truncate(path, path.stat().st_size - 3)
    outbox.send()
    assert sorted(ids(records(kafka))) == ["a-0", "a-1"]
    assert path.exists()
    log.close()
    outbox.send()
    assert not path.exists()
    assert len(records(kafka)) == 2


def test_more_files_than_are_open_at_once_are_sent_in_order(settings, kafka):
    """The first file has the last row; the rows before it are in files beyond the first ones."""
    outbox = Outbox(settings)
    first_log = log_of(settings, outbox)
    log = log_of(settings, outbox)
    count = FILES_AT_ONCE * 2
    for number in range(count):
        log.write([answer(f"a-{number}", datetime.now(UTC), entity="e")])
        log.open()
    first_log.write([answer(f"a-{count}", datetime.now(UTC), entity="e")])
    assert len([*outbox.folder.glob("*.jsonl")]) > count
    outbox.send()
    assert ids(records(kafka)) == [f"a-{number}" for number in range(count + 1)]
    assert len([*outbox.folder.glob("*.jsonl")]) == 2


def test_a_row_from_the_future_waits(settings, kafka):
    """Rows before it, of another worker's file, may be in the log only when its time has come."""
    outbox = Outbox(settings)
    log = log_of(settings, outbox)
    log.write([answer("a-0", NOON)])
    future = datetime.now(UTC) + timedelta(hours=1)
    log.write([answer("a-1", future), answer("a-2", NOON)])
    outbox.send()
    assert ids(records(kafka)) == ["a-0"]


def test_rows_wait_for_a_kafka_that_hangs_and_are_sent_once(tmp_path, caplog):
    command = [sys.executable, "-c", MOCK]
    variables = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as mock:  # fmt: skip
        brokers = mock.stdout.readline().strip()
        make_topic(brokers)
        settings = new_settings(
            tmp_path, events_url=f"kafka://{brokers}", predictions_topic=TOPIC
        )
        outbox = Outbox(settings)
        log = log_of(settings, outbox)
        log.write([answer("a-0")])
        outbox.send()
        failures = OUTBOX_FAILURES._value.get()
        mock.send_signal(signal.SIGSTOP)
        log.write([answer(f"a-{number}") for number in range(1, 1000)])
        sending = threading.Thread(target=outbox.send)
        sending.start()
        wait_until("failures", lambda: OUTBOX_FAILURES._value.get() > failures + 1)
        assert caplog.text.count("they stay in GYRE_HOME") == 1
        assert OUTBOX_BYTES._value.get() > 100_000
        mock.send_signal(signal.SIGCONT)
        sending.join()
        assert OUTBOX_BYTES._value.get() == 0
        assert len(records(brokers)) == 1000
        mock.kill()


def test_rows_wait_for_a_kafka_that_does_not_listen(tmp_path, kafka, caplog):
    port = unused_port()
    settings = new_settings(
        tmp_path, events_url=f"kafka://127.0.0.1:{port}", predictions_topic=TOPIC
    )
    outbox = Outbox(settings)
    log = log_of(settings, outbox)
    log.write([answer("a-0")])
    log.close()
    outbox.close()  # does not wait before it tries again
    outbox.send()
    assert "they stay in GYRE_HOME" in caplog.text
    address = f"kafka://{kafka}"
    back = Outbox(settings.model_copy(update={"events_url": address}))
    outbox._lock.release()  # as the end of its process does
    back.send()
    assert ids(records(kafka)) == ["a-0"]


@pytest.mark.parametrize("setting", ["predictions_topic", "decisions_topic"])
def test_a_topic_needs_a_kafka(tmp_path, setting):
    with pytest.raises(SettingsError, match=f"GYRE_{setting.upper()}: .*EVENTS_URL"):
        load_settings(home=tmp_path, **{setting: "a"})
