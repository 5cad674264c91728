"""DynamoDB in place of Redis: Feast's own store, from rows to predictions, against moto."""

from contextlib import ExitStack
from datetime import UTC, datetime

import boto3
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from core.project import CLONE
from feature_engine.ingest.source import pull
from feature_repo.datasets.orders import ORDERS
from feature_repo.published.config import write_feast_config
from tests.conftest import new_settings
from tests.serving.conftest import KNOWN, SPEC, Rig
from tests.support.serving.event_requests import URL, order, soon
from tests.support.stores.dynamodb import dynamodb_programs
from tests.support.stores.s3 import s3_server

pytestmark = pytest.mark.nightly


def row_counts():
    """Return how many rows the tables have."""
    client = boto3.client("dynamodb")
    names = client.list_tables()["TableNames"]
    return {client.scan(TableName=name, Select="COUNT")["Count"] for name in names}


@pytest.fixture
def rig(tmp_path, monkeypatch):
    """An installation that ingests some of the orders, and whose features go to DynamoDB."""
    programs = dynamodb_programs()
    demo = new_settings(tmp_path / "demo", demo_start=None)
    rows = pull(demo, ORDERS, datetime.now(UTC)).read_all()
    rows = rows.filter(pc.field("customer_id") < 2000)
    file = tmp_path / "orders.parquet"
    pq.write_table(rows.select(ORDERS.schema.names), file)
    monkeypatch.setenv("GYRE_ONLINE_STORE__TYPE", "dynamodb")
    monkeypatch.setenv("GYRE_ONLINE_STORE__REGION", "us-east-1")
    monkeypatch.setenv("GYRE_SOURCES__ORDERS", str(file))
    settings = new_settings(tmp_path / "home", demo_start=None)
    with s3_server(tmp_path, monkeypatch), ExitStack() as opened:
        rig = Rig(settings, tmp_path, opened, programs)
        rig.start_mlflow()
        rig.start_redis()  # of the stream of events
        write_feast_config(settings)
        yield rig


def test_predictions_use_features_from_dynamodb(rig, tmp_path):
    rig.run(rig.programs / "feast", "--chdir", CLONE / "feature_repo", "apply")
    rig.run(rig.programs / "gyre", "ingest")
    orders = pq.read_table(tmp_path / "orders.parquet")
    customers = orders["customer_id"].to_pylist()
    assert row_counts() == {len(set(customers))}
    trained = rig.run(rig.programs / "gyre", "train", SPEC.name)
    assert "version 1 is in production" in trained
    with rig.serving() as (client, _), rig.consuming():
        rig.known_to_be_ready(client)

        def order_count():
            answer = rig.predict_online(client)
            assert answer.json()["features_from"] == "online"
            return rig.row_of(answer)["features"]["lifetime_orders"]

        count = customers.count(KNOWN)
        assert order_count() == count
        assert client.post(URL, json=order(1, KNOWN)).status_code == 202
        soon(order_count, count + 1)
    assert row_counts() == {len(set(customers))}
