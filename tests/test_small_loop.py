"""The whole loop in small: rows, features, a version that answers, drift, and the next version."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_engine.ingest.pipeline import ingest
from feature_engine.ingest.source import pull
from mlflow_server.promotion.ledger import Ledger
from monitoring.monitor import monitor
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
from tests.training.conftest import ORDERS, SMALL, changed
from training import chain

SPEC = changed()
"""The shipped spec with one small forest."""
STUMPS = SMALL.model_copy(update={"parameters": {"n_estimators": 5, "max_depth": 1}})
WEAK = changed(estimators=(STUMPS,))
"""It learns less from the same rows, so that the second version is better beyond chance."""
HALF_A_YEAR = timedelta(days=180)
"""Until now other customers have come: their features drift."""


@pytest.fixture
def settings(tmp_path):
    """Redis, MLflow and published definitions; the shop has a sixth of its customers."""
    home = tmp_path / "home"
    orders = pull(new_settings(home, demo_start=None), ORDERS, datetime.now(UTC))
    rows = orders.read_all()
    is_kept = pa.array(rows["customer_id"].to_numpy() % 6 == 0)
    file = tmp_path / "orders.parquet"
    pq.write_table(rows.filter(is_kept), file)
    settings = new_settings(home, demo_start=None, sources={"orders": str(file)})
    home.mkdir(exist_ok=True)
    with ThreadPoolExecutor() as threads, redis_server(settings.redis_port, home):
        applying = threads.submit(feast_apply, settings)
        with mlflow_server(settings):
            applying.result()
            yield settings


def train(settings, spec, as_of, reason):
    report = chain.train(
        settings, spec, as_of, key=reason, reason=reason, who="loop in small"
    )
    return report.outcome


def customers(settings):
    """Keys of all customers of the source."""
    column = pq.read_table(settings.sources["orders"])["customer_id"]
    return [{"customer_id": key} for key in column.unique().to_pylist()]


def test_drift_of_new_customers_brings_a_second_version_that_answers(settings):
    before = datetime.now(UTC) - HALF_A_YEAR
    assert ingest(settings, "orders", before).inserted > 0
    assert train(settings, WEAK, before, "first").startswith(
        "version 1 is in production"
    )
    assert ingest(settings, "orders", datetime.now(UTC)).inserted > 0

    log = settings.home / "serving.log"
    address = settings.serving_address
    with (
        running(
            [sys.executable, "-m", "serving"], log, **process_environment(settings)
        ),
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        wait_until("version 1", lambda: answers(f"{address}/health/ready"))
        response = http.post("/predict/batch", json=customers(settings))
        predictions = response.raise_for_status().json()
        assert {answer["model_version"] for answer in predictions} == {"1"}
        assert all(answer["logged"] for answer in predictions)
        sources = [answer["features_from"] for answer in predictions]
        assert sources.count("online") > 0.9 * len(sources)

        first = monitor(settings, SPEC, datetime.now(UTC))
        assert (first.verdict, first.decision.rule) == ("bad", "first_bad_window")
        second = monitor(settings, SPEC, datetime.now(UTC))
        assert (second.verdict, second.decision.action) == ("bad", "retrain")
        assert "PSI" in second.decision.reason

        outcome = train(settings, SPEC, datetime.now(UTC), second.decision.reason)
        assert outcome == "version 2 is in production, in place of 1"
        key = {"customer_id": predictions[0]["customer_id"]}

        def has_second_version():
            answer = http.post("/predict", json=key).json()
            return answer["model_version"] == "2"

        wait_until("version 2", has_second_version)

    with closing(Ledger(settings)) as ledger:
        rows = ledger.rows(SPEC.name)
    assert [(row.from_version, row.to_version) for row in rows] == [
        (None, "1"),
        ("1", "2"),
    ]
    assert rows[-1].why == second.decision.reason
    alerts = (settings.home / "logs" / "alerts.log").read_text().splitlines()
    causes = [json.loads(line)["cause"] for line in alerts]
    assert [cause for cause in causes if "drift of version 1" in cause]
