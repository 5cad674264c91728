"""Replicas that are lost, and an S3 that does not take their logs."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from monitoring.collect import collect, predictions
from serving.inbox import Inbox
from tests.conftest import at_most, new_settings, unused_port, wait_until
from tests.faults.conftest import workers
from tests.s3 import s3_server
from tests.serving.load import under_load

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    import httpx

    from core.settings import Settings


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with (
        pytest.MonkeyPatch.context() as patch,
        s3_server(tmp_path_factory.mktemp("s3"), patch) as server,
    ):
        yield server


@pytest.fixture(params=["s3://gyre/a"])
def replica(
    rig,
    served,
    s3,
    request,
    monkeypatch,
):
    """Settings of a replica whose log is its own: the folder outlives it."""
    home = rig.home_beside()
    (home / "serving" / "log").unlink()
    monkeypatch.setenv("GYRE_DATA_URL", request.param)
    return {"home": home, "data_url": request.param, "serving_port": unused_port()}


def log_of(replica: dict[str, Any]) -> list[Path]:
    return sorted((replica["home"] / "serving" / "log").glob("*.jsonl"))


def collected(folder: Path, replica: dict[str, Any]) -> list[str]:
    """Request ids in `predictions`, after another host collected."""
    host: Settings = new_settings(folder / "host", data_url=replica["data_url"])
    collect(host)
    return list(predictions(host).read()["request_id"].to_pylist())


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
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
    rows = collected(tmp_path, replica)
    assert acknowledged <= {*rows}
    assert len(rows) == len({*rows})


@pytest.mark.timed
@pytest.mark.parametrize("replica", ["s3://away/a"], indirect=True)
def test_while_s3_is_away_or_hangs_predictions_go_on_and_nothing_is_lost(
    rig, replica, s3, tmp_path
):
    """31: no bucket, then one; then a server that accepts and never answers, past SIGTERM."""
    acknowledged: list[str] = []

    def predict(client: httpx.Client) -> None:
        began = time.monotonic()
        answer = rig.predict(client).json()
        assert answer["logged"]
        assert time.monotonic() - began < at_most(1)
        acknowledged.append(answer["request_id"])

    def is_refused() -> bool:
        return "takes no files of the log" in (rig.folder / "serving.log").read_text()

    with rig.serving(**replica) as (client, process):
        rig.known_to_be_ready(client)
        began = time.monotonic()
        predict(client)
        wait_until("a refusal", is_refused, at_most(12))
        predict(client)
        assert any(file.stat().st_size for file in log_of(replica))
        boto3.client("s3").create_bucket(Bucket="away")
        wait_until(
            "the first row", lambda: collected(tmp_path, replica) == acknowledged[:1]
        )
        assert time.monotonic() - began < at_most(20)
        s3.send_signal(signal.SIGSTOP)
        try:
            for _ in range(10):
                predict(client)
            end(process, 8)
        finally:
            s3.send_signal(signal.SIGCONT)
    folder = log_of(replica)[0].parent
    asyncio.run(Inbox(replica["data_url"], folder).send())  # as the next one does
    assert log_of(replica) == []
    assert sorted(collected(tmp_path, replica)) == sorted(acknowledged)
