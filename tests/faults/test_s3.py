"""S3 stops answering in the middle: the old state answers, and the next run is whole."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import boto3
import pyarrow.parquet as pq
import pytest

from core.errors import DataError, RegistryError
from core.spec import load_spec
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table, view_files
from feature_repo.ingest import ingest
from mlflow_server.registry import Registry
from tests.conftest import AS_OF, feast_apply, mlflow_server, new_settings, redis_server, wait_until
from tests.s3 import s3_server
from training.chain import train

ORDERS, VIEW, DAY = load_dataset("orders"), "customer_features", timedelta(days=1)
SPEC = load_spec("customer_churn_model")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    with s3_server(tmp_path, monkeypatch) as server:
        yield server


@contextmanager
def installed(home, **more):
    settings = new_settings(home, **more)
    home.mkdir()
    with redis_server(settings.redis_port, home):
        feast_apply(settings)
        yield settings


def state(settings):
    """Rows of the raw table, and of the view's files by content."""
    raw = raw_table(settings, ORDERS).read(columns=ORDERS.schema.names)
    columns = ["customer_id", "event_timestamp", "total_orders_30d", "lifetime_value"]
    view = pq.read_table(view_files(settings, VIEW), columns=columns)
    return raw.sort_by("order_id"), view.sort_by([(name, "ascending") for name in columns])


def stopped_at(bucket, log, nth, run):
    """Run what writes to S3, which stops answering after the nth write, and is back in the end."""

    def writes():
        return log.read_text().count('"PUT /gyre/')

    known = writes()
    with ThreadPoolExecutor() as threads:
        done = threads.submit(run)
        wait_until("a write", lambda: writes() >= known + nth or done.done())
        bucket.send_signal(signal.SIGSTOP)
        with pytest.raises(DataError, match="S3"):
            done.result()
    bucket.send_signal(signal.SIGCONT)


@pytest.mark.timeout(400)
def test_in_the_middle_of_an_ingest(bucket, tmp_path):
    with installed(tmp_path / "home", data_url="s3://gyre/a") as settings:
        ingest(settings, "orders", AS_OF - 5 * DAY)
        for day, nth in enumerate((1, 2, 4, 9), -4):
            before, run = state(settings), partial(ingest, settings, "orders", AS_OF + day * DAY)
            stopped_at(bucket, tmp_path / "s3.log", nth, run)
            raw, view = state(settings)
            assert view.equals(before[1])
            run()
            after = state(settings)
            assert raw.equals(before[0]) or raw.equals(after[0])
    with installed(tmp_path / "on disk") as beside:
        ingest(beside, "orders", AS_OF - DAY)
        assert all(found.equals(wanted) for found, wanted in zip(after, state(beside), strict=True))


@pytest.mark.timeout(300)
def test_in_a_training_run(bucket, tmp_path):
    client = boto3.client("s3")
    with (
        installed(tmp_path / "home", artifacts_url="s3://gyre/a") as settings,
        mlflow_server(settings),
    ):
        ingest(settings, "orders", AS_OF)
        run = partial(train, settings, SPEC, AS_OF, reason="because", who="test", key="k")
        client.delete_bucket(Bucket="gyre")
        with pytest.raises(RegistryError, match="MLflow"):
            run()
        client.create_bucket(Bucket="gyre")
        assert run().version == "1"
        assert Registry(settings).aliases(SPEC.name)["production"] == "1"
