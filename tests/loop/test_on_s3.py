"""Ingest, train, serve, monitor, forget by the commands, with all files in a bucket."""

import json
from datetime import UTC, datetime

import pytest

from core.files import location
from core.settings import free_ports, load_settings
from stack.environment import process_environment
from tests.conftest import feast_apply, mlflow_server, redis_server
from tests.support.feature_engine.delivered_source import deliver, source
from tests.support.stores.azure import azure_server
from tests.support.stores.gcs import writable_gcs_server
from tests.support.stores.s3 import BUCKET, s3_server
from tests.support.tools.clone import gyre, online_answer, serving

MODEL = "customer_churn_model"


BUCKETS = {"s3": s3_server, "gs": writable_gcs_server, "az": azure_server}


@pytest.mark.parametrize(
    "scheme",
    [
        "s3",
        pytest.param("gs", marks=pytest.mark.nightly),
        pytest.param("az", marks=pytest.mark.nightly),
    ],
)
def test_the_loop_runs_on_a_bucket(tmp_path, monkeypatch, scheme):
    deliver(tmp_path, datetime.now(UTC), demo_start=None)
    monkeypatch.setenv("GYRE_DATA_URL", f"{scheme}://{BUCKET}/team/data")
    if scheme == "s3":  # MLflow itself writes these
        monkeypatch.setenv("GYRE_ARTIFACTS_URL", f"s3://{BUCKET}/team/artifacts")
    monkeypatch.setenv("GYRE_SOURCES__ORDERS", source(tmp_path))
    settings = load_settings(home=tmp_path / "home", **free_ports())
    settings.home.mkdir()
    with (
        BUCKETS[scheme](tmp_path, monkeypatch),
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
    folder = location(settings.data_url).parent
    names = [name.partition("/team/")[2] for name in folder.fs.find(folder.path)]
    parts = [
        "data/raw/orders/_delta_log/",
        "data/features/customer_features/_delta_log/",
        "data/features/customer_features/period=",
        "data/reports/data_docs/orders/",
        "data/reports/datasets/orders.json",
    ]
    if settings.artifacts_url:
        parts.append("artifacts/")
    for part in parts:
        assert any(name.startswith(part) for name in names), part
    files = [path for path in (settings.home / "data").rglob("*") if path.is_file()]
    assert [file for file in files if file.suffix != ".lock"] == []
