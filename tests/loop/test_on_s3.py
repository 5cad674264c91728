"""Ingest, train, serve, monitor, forget by the commands, with all files on S3."""

import json
from datetime import UTC, datetime

import boto3

from core.settings import free_ports, load_settings
from stack.environment import process_environment
from tests.conftest import feast_apply, mlflow_server, redis_server
from tests.support.feature_engine.delivered_source import deliver, source
from tests.support.tools.clone import gyre, online_answer, serving
from tests.support.tools.s3 import BUCKET, s3_server

MODEL = "customer_churn_model"


def test_the_loop_runs_on_s3(tmp_path, monkeypatch):
    deliver(tmp_path, datetime.now(UTC), demo_start=None)
    monkeypatch.setenv("GYRE_DATA_URL", f"s3://{BUCKET}/team/data")
    monkeypatch.setenv("GYRE_ARTIFACTS_URL", f"s3://{BUCKET}/team/artifacts")
    monkeypatch.setenv("GYRE_SOURCES__ORDERS", source(tmp_path))
    settings = load_settings(home=tmp_path / "home", **free_ports())
    settings.home.mkdir()
    with (
        s3_server(tmp_path, monkeypatch),
        redis_server(settings.redis_port, settings.home),
        mlflow_server(settings),
    ):
        feast_apply(settings)
        assert "new, 0 corrected" in gyre(settings, "ingest orders").stdout
        assert "in production" in gyre(settings, f"train {MODEL}").stdout
        with serving(settings, **process_environment(settings)):
            url = f"{settings.serving_address}/predict"
            answer = online_answer(url, {"customer_id": 4})
            assert answer["model_version"] == "1"
            report = json.loads(gyre(settings, f"monitor {MODEL} --json").stdout)
            assert report["verdict"]
            check_that_no_file_is_on_this_disk_alone(settings)
            forgotten = gyre(settings, "forget orders --customer_id 4").stdout
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
