"""The whole loop on a cluster: from rows to a served prediction, monitored; all tables on S3."""

import json
import os
import subprocess
from contextlib import ExitStack
from datetime import UTC, datetime

import httpx
import pytest

from core.settings import PROJECT, free_ports, load_settings
from feature_repo.features import raw_table
from feature_repo.views import view_table, write_views
from stack.environment import process_environment
from tests.cli.clone import serving
from tests.cluster.conftest import HOST, Cluster, spark_defaults
from tests.cluster.test_executors import assert_same_rows
from tests.cluster.test_views import DATASET, VIEW, view_rows
from tests.conftest import (
    BIN,
    feast_apply,
    mlflow_server,
    redis_server,
)
from tests.faults.test_s3 import deliver, source

pytestmark = pytest.mark.cluster
MODEL = "customer_churn_model"


class Shop:
    """An installation whose tables are on S3, computed on a cluster."""

    def __init__(self, folder, cluster, monkeypatch):
        deliver(folder, datetime.now(UTC), demo_start=None)
        variables = {
            "GYRE_ENGINE": "spark",
            "GYRE_SOURCES__ORDERS": source(folder),
            "GYRE_SPARK_MASTER": cluster.address,
            "GYRE_DATA_URL": "s3://gyre/loop/data",
            "GYRE_ARTIFACTS_URL": "s3://gyre/loop/artifacts",
            "SPARK_CONF_DIR": str(spark_defaults(folder)),
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        self.settings = load_settings(home=folder / "home", **free_ports())
        self.settings.home.mkdir()

    def start(self, command):
        return subprocess.Popen(
            [BIN / "gyre", *command.split()], cwd=PROJECT, text=True,
            env=os.environ | process_environment(self.settings),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, command):
        process = self.start(command)
        output, errors = process.communicate(timeout=900)
        assert process.returncode == 0, output + errors
        return output


@pytest.fixture
def shop(cluster: Cluster, tmp_path, monkeypatch):
    shop = Shop(tmp_path, cluster, monkeypatch)
    with ExitStack() as stack:
        port = shop.settings.redis_port
        stack.enter_context(redis_server(port, shop.settings.home, HOST))
        address = f"redis://{HOST}:{port}"
        monkeypatch.setenv("GYRE_REDIS_URL", address)
        shop.settings = shop.settings.model_copy(update={"redis_url": address})
        stack.enter_context(mlflow_server(shop.settings))
        feast_apply(shop.settings)
        yield shop


@pytest.mark.timeout(1800)
def test_rows_become_a_served_prediction_that_is_monitored(shop, tmp_path):
    settings = shop.settings
    ingests = [shop.start("ingest orders") for _ in range(2)]
    failures = []
    for ingest in ingests:
        output, errors = ingest.communicate(timeout=900)
        if ingest.returncode:
            failures.append(output + errors)
    # The second waits for the first, or says that it holds the lock.
    assert len(failures) < 2, failures
    for failure in failures:
        assert "another writer held it" in failure
    assert "in production" in shop.run(f"train {MODEL}")
    with serving(settings, **process_environment(settings)):
        url = f"{settings.serving_address}/predict"
        answer = httpx.post(url, json={"customer_id": 4}, timeout=60).json()
        assert answer["features_from"] == "online"
        assert answer["model_version"] == "1"
        report = json.loads(shop.run(f"monitor {MODEL} --json"))
        assert report["verdict"]
        assert "entities scored" in shop.run(f"score {MODEL}")
    plain_settings = settings.model_copy(
        update={"engine": "duckdb", "home": tmp_path / "plain", "data_url": None}
    )
    write_views(plain_settings, DATASET, raw_table(settings, DATASET))
    assert_same_rows(view_rows(settings), view_rows(plain_settings))
    assert view_table(settings, VIEW).version == 1
    assert [*settings.scratch.glob("*")] == []
