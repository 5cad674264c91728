"""Ingest, train, serve, monitor, forget by the commands, with all files on S3."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import boto3

from core.settings import PROJECT, free_ports, load_settings
from stack.environment import process_environment
from tests.cli.clone import online_answer
from tests.conftest import (
    answers,
    feast_apply,
    mlflow_server,
    redis_server,
    running,
    wait_until,
)
from tests.faults.test_s3 import deliver, source
from tests.preloaded import commands_folder
from tests.s3 import BUCKET, s3_server

MODEL = "customer_churn_model"


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


def test_the_loop_on_s3(tmp_path, monkeypatch):
    deliver(tmp_path, datetime.now(UTC), demo_start=None)
    monkeypatch.setenv("GYRE_DATA_URL", f"s3://{BUCKET}/team/data")
    monkeypatch.setenv("GYRE_ARTIFACTS_URL", f"s3://{BUCKET}/team/artifacts")
    monkeypatch.setenv("GYRE_SOURCES__ORDERS", source(tmp_path))
    settings = load_settings(home=tmp_path / "home", **free_ports())
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
            address = settings.serving_address
            wait_until("serving", lambda: answers(f"{address}/health/ready"))
            answer = online_answer(f"{address}/predict", {"customer_id": 4})
            assert answer["model_version"] == "1"
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
