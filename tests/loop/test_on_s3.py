"""Ingest, train, serve, monitor, forget by the commands, with tables, features, reports and
MLflow's files on S3; and on disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime

import boto3
import httpx
import pytest

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
    url, answer = f"{settings.serving_address}/predict", httpx.Response(503)

    def is_answered():
        nonlocal answer
        answer = httpx.post(url, json={"customer_id": 4}, timeout=60)
        return answer.is_success and answer.json()["features_from"] == "online"

    wait_until("a prediction", is_answered)
    return answer.json()


@pytest.mark.parametrize(
    "place", ["S3", pytest.param("disk", marks=pytest.mark.nightly)]
)
def test_the_loop_goes_round(tmp_path, monkeypatch, place):
    deliver(tmp_path, datetime.now(UTC), demo_start=None)
    variables = ON_S3 if place == "S3" else {}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    urls = {name[5:].lower(): value for name, value in variables.items()}
    monkeypatch.setenv("GYRE_SOURCES__ORDERS", source(tmp_path))
    urls["sources"] = {"orders": source(tmp_path)}
    settings = new_settings(tmp_path / "home", demo_start=None, **urls)
    with ExitStack() as stack:
        if place == "S3":
            stack.enter_context(s3_server(tmp_path, monkeypatch))
        settings.home.mkdir()
        stack.enter_context(redis_server(settings.redis_port, settings.home))
        stack.enter_context(mlflow_server(settings))
        feast_apply(settings)
        assert "new, 0 corrected" in gyre(settings, "ingest", "orders")
        assert "in production" in gyre(settings, "train", MODEL)
        variables = process_environment(settings)
        command = [sys.executable, "-m", "serving"]
        stack.enter_context(running(command, tmp_path / "serving.log", **variables))
        wait_until(
            "serving", lambda: answers(f"{settings.serving_address}/health/ready")
        )
        assert predicted(settings)["model_version"] == "1"
        report = json.loads(gyre(settings, "monitor", MODEL, "--json"))
        assert report["verdict"]
        if place == "S3":
            on_s3(settings)
        forget = "forget", "orders", "--customer_id", "4"
        said = gyre(settings, *forget)
        for held in (
            "raw rows: 4",
            "features: 12",
            "online values",
            "prediction",
        ):
            assert held in said
        assert gyre(settings, *forget).startswith("nothing is found")


def on_s3(settings):
    """Look at what is where: nothing that another host needs is on this disk alone."""
    objects = boto3.client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]
    names = [each["Key"].removeprefix("team/") for each in objects]
    for part in (
        "data/raw/orders/_delta_log/",
        "data/features/customer_features/_delta_log/",
        "data/features/customer_features/period=",
        "data/reports/data_docs/orders/",
        "data/reports/datasets/orders.json",
        "artifacts/",
    ):
        assert any(name.startswith(part) for name in names), part
    left = {path.name for path in (settings.home / "data").rglob("*") if path.is_file()}
    assert {name for name in left if not name.endswith(".lock")} == set()
