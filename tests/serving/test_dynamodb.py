"""DynamoDB in place of Redis: Feast's own store, from rows to predictions, against moto."""

import os
import subprocess
from datetime import UTC, datetime

import boto3
import httpx
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from core.settings import CLONE
from feature_repo.datasets.orders import ORDERS
from feature_repo.feast_config import write_feast_config
from feature_repo.source import pull
from mlflow_server.registry import Registry
from stack.environment import process_environment
from tests.conftest import (
    answers,
    mlflow_server,
    new_settings,
    redis_server,
    running,
    wait_until,
)
from tests.s3 import s3_server
from tests.serving.conftest import Rig

pytestmark = pytest.mark.nightly
BIN = CLONE / ".venv-dynamodb" / "bin"
"""Where aiobotocore is, which Feast's store imports, with the older boto3 that it wants."""
MODEL = "customer_churn_model"
KNOWN = 4


def run(settings, *command, folder=CLONE):
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=folder,
        env=process_environment(settings) | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tables():
    client = boto3.client("dynamodb")
    names = client.list_tables()["TableNames"]
    return {
        name: client.scan(TableName=name, Select="COUNT")["Count"] for name in names
    }


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """Settings of a home whose features go to DynamoDB; the file of its orders."""
    environment = ".venv-dynamodb/gyre.stamp"
    subprocess.run(["make", "--silent", environment], cwd=CLONE, check=True)
    source = tmp_path / "orders.parquet"
    demo = new_settings(tmp_path / "demo", demo_start=None)
    rows = pull(demo, ORDERS, datetime.now(UTC)).read_all()
    rows = rows.filter(pc.field("customer_id") < 2000)
    pq.write_table(rows.select(ORDERS.schema.names), source)
    monkeypatch.setenv("GYRE_ONLINE_STORE__TYPE", "dynamodb")
    monkeypatch.setenv("GYRE_ONLINE_STORE__REGION", "us-east-1")
    monkeypatch.setenv("GYRE_SOURCES__ORDERS", str(source))
    settings = new_settings(tmp_path / "home", demo_start=None)
    with (
        s3_server(tmp_path, monkeypatch),
        mlflow_server(settings),
        redis_server(settings.redis_port, tmp_path),  # of the stream of events
    ):
        write_feast_config(settings)
        yield settings, source


def test_predictions_use_features_from_dynamodb(stack, tmp_path):
    settings, source = stack
    run(settings, "feast", "apply", folder=CLONE / "feature_repo")
    run(settings, "gyre", "ingest")
    entities = len(set(pq.read_table(source)["customer_id"].to_pylist()))
    assert set(tables().values()) == {entities}
    assert "is in production" in run(settings, "gyre", "train", MODEL)
    assert Registry(settings).production(MODEL) == "1"

    command = [str(BIN / "python"), "-m", "serving"]
    with (
        running(command, tmp_path / "serving.log", **process_environment(settings)),
        httpx.Client(base_url=settings.serving_address, timeout=60) as client,
    ):

        def features(customer):
            request = {"customer_id": customer}
            answer = Rig.online(lambda: client.post("/explain", json=request)).json()
            assert answer["features_from"] == "online"
            return {
                name: part["value"] for name, part in answer["contributions"].items()
            }

        ready = f"{settings.serving_address}/health/ready"
        wait_until("serving", lambda: answers(ready), 120)
        orders = pq.read_table(source)
        mine = orders.filter(pc.field("customer_id") == KNOWN)
        assert features(KNOWN)["lifetime_orders"] == mine.num_rows

        event = {"order_id": 10**9, "customer_id": KNOWN, "number_of_cds": 1}
        event |= {"dollar_value": 10.0, "order_ts": datetime.now(UTC).isoformat()}
        consumer = [str(BIN / "gyre"), "consume"]
        log = tmp_path / "consumer.log"
        with running(consumer, log, **process_environment(settings)):
            wait_until("consumer", lambda: b"consuming" in log.read_bytes(), 120)
            assert client.post("/events/orders", json=event).status_code == 202
            expected = mine.num_rows + 1
            wait_until(
                "the event", lambda: features(KNOWN)["lifetime_orders"] == expected
            )
    assert set(tables().values()) == {entities}
