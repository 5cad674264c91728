"""Ingest, train, serve, monitor, forget by the commands, with all files on S3."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import boto3
import httpx

from core.settings import PROJECT
from stack.environment import process_environment
from tests.conftest import (
    answers,
    feast_apply,
    mlflow_server,
    new_settings,
    redis_server,
    running,
    wait_until,
)
from tests.faults.test_s3 import deliver, source
from tests.preloaded import commands_folder
from tests.s3 import BUCKET, s3_server

MODEL = "customer_churn_model"
ON_S3 = {
    "GYRE_DATA_URL": f"s3://{BUCKET}/team/data",
    "GYRE_ARTIFACTS_URL": f"s3://{BUCKET}/team/artifacts",
}


def gyre(settings, *arguments):
    done = subprocess.run(
        [commands_folder() / "gyre", *arguments],
        cwd=PROJECT,
        env=process_environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def predicted(settings):
    """Return an answer made of online features, once there is one."""
    url = f"{settings.serving_address}/predict"
    responses = []

    def is_answered():
        responses.append(httpx.post(url, json={"customer_id": 4}, timeout=60))
        return responses[-1].is_success and '"online"' in responses[-1].text

    wait_until("a prediction", is_answered)
    return responses[-1].json()


def test_the_loop_on_s3(tmp_path, monkeypatch):
    deliver(tmp_path, datetime.now(UTC), demo_start=None)
    for name, value in ON_S3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GYRE_SOURCES__ORDERS", source(tmp_path))
    settings = new_settings(
        tmp_path / "home",
        demo_start=None,
        sources={"orders": source(tmp_path)},
        data_url=ON_S3["GYRE_DATA_URL"],
        artifacts_url=ON_S3["GYRE_ARTIFACTS_URL"],
    )
    settings.home.mkdir()
    command = [sys.executable, "-m", "serving"]
    with (
        s3_server(tmp_path, monkeypatch),
        redis_server(settings.redis_port, settings.home),
        mlflow_server(settings),
    ):
        feast_apply(settings)
        assert "new, 0 corrected" in gyre(settings, "ingest", "orders")
        assert "in production" in gyre(settings, "train", MODEL)
        variables = process_environment(settings)
        with running(command, tmp_path / "serving.log", **variables):
            ready = f"{settings.serving_address}/health/ready"
            wait_until("serving", lambda: answers(ready))
            assert predicted(settings)["model_version"] == "1"
            report = json.loads(gyre(settings, "monitor", MODEL, "--json"))
            assert report["verdict"]
            check_that_no_file_is_on_this_disk_alone(settings)
            forgotten = gyre(settings, "forget", "orders", "--customer_id", "4")
            for part in ("raw rows: 4", "features: 12", "online values", "prediction"):
                assert part in forgotten


def check_that_no_file_is_on_this_disk_alone(settings):
    objects = boto3.client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]
    names = [entry["Key"].removeprefix("team/") for entry in objects]
    for part in (
        "data/raw/orders/_delta_log/",
        "data/features/customer_features/_delta_log/",
        "data/features/customer_features/period=",
        "data/reports/data_docs/orders/",
        "data/reports/datasets/orders.json",
        "artifacts/",
    ):
        assert any(name.startswith(part) for name in names), part
    files = [path for path in (settings.home / "data").rglob("*") if path.is_file()]
    assert [file for file in files if file.suffix != ".lock"] == []
