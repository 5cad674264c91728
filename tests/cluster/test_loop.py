"""The whole loop on a cluster: from rows to a served prediction, monitored; all tables on S3."""

import json
import subprocess
from datetime import UTC, datetime

import pytest

from core.project import PROJECT
from core.settings import free_ports, load_settings
from feature_engine.offline.views import view_table
from stack.environment import process_environment
from tests.cluster.conftest import HOST, spark_defaults
from tests.conftest import BIN, feast_apply, mlflow_server, redis_server
from tests.support.feature_engine.big_shop import (
    BigShop,
    complete_a_killed_refresh,
    refresh_while_events_arrive,
)
from tests.support.feature_engine.delivered_source import deliver, source
from tests.support.tools.clone import gyre, online_answer, serving, stack_environment

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
]
MODEL = "customer_churn_model"


@pytest.fixture
def settings(cluster, tmp_path, monkeypatch):
    """Settings of an installation whose tables are on S3, computed on a cluster."""
    deliver(tmp_path, datetime.now(UTC), demo_start=None)
    ports = free_ports()
    variables = {
        "GYRE_ENGINE": "spark",
        "GYRE_SOURCES__ORDERS": source(tmp_path),
        "GYRE_SPARK_MASTER": cluster.address,
        "GYRE_DATA_URL": f"s3://gyre/{tmp_path.name}/data",
        "GYRE_ARTIFACTS_URL": f"s3://gyre/{tmp_path.name}/artifacts",
        "GYRE_REDIS_URL": f"redis://{HOST}:{ports['redis_port']}",
        "SPARK_CONF_DIR": str(spark_defaults(tmp_path)),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(home=tmp_path / "home", **ports)
    settings.home.mkdir()
    with (
        redis_server(settings.redis_port, settings.home, HOST),
        mlflow_server(settings),
    ):
        feast_apply(settings)
        yield settings


def start_ingest(settings):
    return subprocess.Popen(
        [BIN / "gyre", "ingest", "orders"],
        cwd=PROJECT,
        env=stack_environment(settings),
        stderr=subprocess.PIPE,
        text=True,
    )


def test_rows_become_a_served_prediction_that_is_monitored(settings):
    failures = []
    for ingest in (start_ingest(settings), start_ingest(settings)):
        _, errors = ingest.communicate(timeout=900)
        if ingest.returncode:
            failures.append(errors)
    # The second waits for the first, or says that it holds the lock.
    assert len(failures) < 2, failures
    for failure in failures:
        assert "another writer held it" in failure
    assert "in production" in gyre(settings, f"train {MODEL}").stdout
    with serving(settings, **process_environment(settings)):
        url = f"{settings.serving_address}/predict"
        assert online_answer(url, {"customer_id": 4})["model_version"] == "1"
        report = json.loads(gyre(settings, f"monitor {MODEL} --json").stdout)
        assert report["verdict"]
        assert "entities scored" in gyre(settings, f"score {MODEL}").stdout
    assert view_table(settings, "customer_features").version == 1
    assert [*settings.scratch.glob("*")] == []


def test_a_killed_refresh_is_completed_and_events_meanwhile_bring_back_no_older_value(
    settings, tmp_path
):
    folder = tmp_path / "source"
    folder.mkdir()
    # More customers than in a transaction.
    shop = BigShop(settings, folder, 120_000)
    complete_a_killed_refresh(shop, delivery=1)
    refresh_while_events_arrive(shop, delivery=2)
