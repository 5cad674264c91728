"""Replicas that are lost, and an S3 that does not take their logs."""

import asyncio
import time

import boto3
import pytest

from monitoring.log.collect import collect
from monitoring.log.tables import predictions
from serving.prediction_log.inbox import Inbox
from tests.conftest import at_most, new_settings, wait_until
from tests.faults.conftest import standing_still, workers
from tests.support.serving.load import under_load
from tests.support.stores.s3 import BUCKET

DATA_URL = f"s3://{BUCKET}/a"


@pytest.fixture
def replica(rig, served, s3, monkeypatch):
    """Settings of a replica whose log is its own: the folder outlives it."""
    home = rig.second_home()
    (home / "serving" / "log").unlink()
    monkeypatch.setenv("GYRE_DATA_URL", DATA_URL)
    return {"home": home, "data_url": DATA_URL}


def log_of(replica):
    return sorted((replica["home"] / "serving" / "log").glob("*.jsonl"))


def collected(folder):
    """Request ids in `predictions`, after another host collected."""
    host = new_settings(folder / "host", data_url=DATA_URL)
    collect(host)
    return predictions(host).read()["request_id"].to_pylist()


def end(process, seconds):
    process.terminate()
    assert process.wait(at_most(seconds)) == 0


@pytest.mark.timed
def test_a_replica_killed_under_load_and_replaced_loses_no_acknowledged_row(
    rig, replica, tmp_path
):
    """25, 31: the next one sends what it left; SIGTERM sends the open files of that one."""
    with rig.serving(**replica, serving_workers=2) as (client, process):
        rig.known_to_be_ready(client)
        with under_load(client, 3) as answers:
            wait_until("requests", lambda: len(answers) > 200)
            for part in (*workers(process), process):
                part.kill()
    acknowledged = {
        answer.body["request_id"] for answer in answers if answer.status == 200
    }
    assert len(acknowledged) > 200
    before = {*log_of(replica)}
    assert any(file.stat().st_size > 0 for file in before)
    with rig.serving(**replica, serving_workers=2) as (client, process):
        rig.known_to_be_ready(client)
        wait_until("its log", lambda: before.isdisjoint(log_of(replica)))
        acknowledged.add(rig.predict(client).json()["request_id"])
        end(process, 5)
    assert log_of(replica) == []
    rows = collected(tmp_path)
    assert acknowledged <= {*rows}
    assert len(rows) == len({*rows})


@pytest.mark.timed
def test_predictions_continue_and_no_row_is_lost_while_s3_is_away_or_hangs(
    rig, replica, s3, tmp_path
):
    """31: no bucket, then one; then a server that accepts and never answers, past SIGTERM."""
    acknowledged = []
    buckets = boto3.client("s3")
    buckets.delete_bucket(Bucket=BUCKET)

    def predict(client):
        began = time.monotonic()
        answer = rig.predict(client).json()
        assert answer["logged"]
        assert time.monotonic() - began < at_most(1)
        acknowledged.append(answer["request_id"])

    def is_refused():
        return "takes no files of the log" in (rig.folder / "serving.log").read_text()

    with rig.serving(**replica) as (client, process):
        rig.known_to_be_ready(client)
        began = time.monotonic()
        predict(client)
        wait_until("a refusal", is_refused, at_most(12))
        predict(client)
        assert any(file.stat().st_size for file in log_of(replica))
        buckets.create_bucket(Bucket=BUCKET)
        wait_until("the first row", lambda: collected(tmp_path) == acknowledged[:1])
        assert time.monotonic() - began < at_most(20)
        with standing_still(s3):
            for _ in range(10):
                predict(client)
            end(process, 8)
    folder = replica["home"] / "serving" / "log"
    asyncio.run(Inbox(DATA_URL, folder).send())  # as the next one does
    assert log_of(replica) == []
    assert sorted(collected(tmp_path)) == sorted(acknowledged)
