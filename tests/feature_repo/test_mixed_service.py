"""A feature service that reads a dataset's views and plain Feast views beside them."""

import asyncio
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from feast import FeatureService, FeatureView, Field, FileSource
from feast.types import Int64, String

from core.timestamps import microseconds
from feature_engine.ingest.pipeline import ingest
from feature_repo.published.config import online_redis
from feature_repo.published.service import PublishedService
from feature_repo.published.specification import look_up_specification
from feature_repo.published.store import open_store
from feature_repo.views import late_features
from serving.features.redis_reader import RedisReader
from tests.conftest import AS_OF, mlflow_server
from tests.training.conftest import SHIPPED, changed
from training.chain import train

pytestmark = pytest.mark.journey

SERVICE = "churn_and_loyalty"
OWN = ["lifetime_orders", "days_since_last_order"]
THEIRS = ["points", "tier"]
CUSTOMERS = range(1, 401)
TTL = timedelta(days=900)


def loyalty():
    """6,000 rows of 400 customers, on days of 900."""
    random = np.random.default_rng(3)
    count = 6_000
    days = random.integers(0, 900, count)
    return pd.DataFrame(
        {
            "customer_id": random.choice(CUSTOMERS, count),
            "event_timestamp": [AS_OF - timedelta(days=int(day)) for day in days],
            "points": random.integers(0, 1_000, count),
            "tier": random.choice(["silver", "gold"], count),
        }
    ).drop_duplicates(["customer_id", "event_timestamp"])


def newest(rows, customer, moment):
    """Return the newest row of a customer at a moment, by a search by hand."""
    is_known = (rows["customer_id"] == customer) & (rows["event_timestamp"] <= moment)
    known_rows = rows[is_known & (rows["event_timestamp"] >= moment - TTL)]
    if known_rows.empty:
        return None
    return known_rows.sort_values("event_timestamp").iloc[-1]


@pytest.fixture(scope="module")
def rows():
    """The rows of a plain view of the team."""
    return loyalty()


@pytest.fixture(scope="module")
def settings(template, some_orders, rows, tmp_path_factory):
    """An installation with a service that has both the team's view and that of the orders."""
    sources = {"orders": str(some_orders)}
    settings = template.restore().model_copy(update={"sources": sources})
    file = tmp_path_factory.mktemp("loyalty") / "loyalty.parquet"
    rows.to_parquet(file)
    ingest(settings, "orders", AS_OF)
    store = open_store(settings, 60)
    view = FeatureView(
        name="loyalty",
        entities=[store.get_entity("customer")],
        ttl=TTL,
        schema=[Field(name="points", dtype=Int64), Field(name="tier", dtype=String)],
        source=FileSource(path=str(file), timestamp_field="event_timestamp"),
    )
    orders = store.get_feature_view("customer_features")
    on_demand = store.list_on_demand_feature_views()
    parts = [orders[[OWN[0]]], *on_demand, view]
    store.apply([view, FeatureService(name=SERVICE, features=parts)])
    store.materialize(AS_OF - TTL, AS_OF, feature_views=["loyalty"])
    return settings


def test_offline_and_online_values_are_those_of_both_kinds_of_view(settings, rows):
    service = PublishedService(settings, SERVICE)
    moments = [
        AS_OF,
        AS_OF - timedelta(days=100, seconds=1),
        AS_OF - 800 * timedelta(days=1),
    ]
    questions = pd.DataFrame(
        [
            {
                "customer_id": customer,
                "event_timestamp": moment,
                "as_of": microseconds(moment),
            }
            for customer in range(380, 420)
            for moment in moments
        ]
    )
    frame = service.historical(questions).to_pandas()
    assert len(frame) == len(questions)
    orders = (
        PublishedService(settings, "customer_churn_v1")
        .historical(questions)
        .to_pandas()
    )
    order = ["customer_id", "event_timestamp"]
    frame = frame.sort_values(order, ignore_index=True)
    orders = orders.sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(frame[OWN], orders[OWN])
    unknown_count = 0
    for row in frame.itertuples():
        newest_row = newest(rows, row.customer_id, row.event_timestamp)
        if newest_row is None:
            unknown_count += 1
            assert pd.isna(row.points)
        else:
            expected = (newest_row["points"], newest_row["tier"])
            assert (row.points, row.tier) == expected
    assert 0 < unknown_count < len(frame)

    lookup = look_up_specification(settings, SERVICE)
    assert lookup.unsupported is None
    keys = [{"customer_id": number} for number in range(380, 420)]
    names = [*OWN, *THEIRS]
    with asyncio.Runner() as runner:
        reader = RedisReader(online_redis(settings), lookup, names)
        assert runner.run(reader.probe()) == AS_OF
        online = runner.run(reader.read(keys, [AS_OF] * len(keys)))
        runner.run(reader.close())
    stock_service = service.store.get_feature_service(SERVICE)
    requests = [key | {"as_of": microseconds(AS_OF)} for key in keys]
    stock = service.store.get_online_features(stock_service, requests).to_dict()
    for position, row in enumerate(online):
        assert row.features == {name: stock[name][position] for name in names}
    assert any(row.features["points"] is None for row in online)


def test_a_model_learns_from_both_and_the_age_of_each_is_watched(settings):
    kinds = {name: SHIPPED.features[name] for name in OWN}
    features = kinds | {"tier": "string"}
    spec = changed(feature_service=SERVICE, features=features, segment=())
    with mlflow_server(settings):
        report = train(settings, spec, AS_OF, key="k", reason="r", who="t")
    assert "version 1 is in production" in report.outcome
    service = PublishedService(settings, SERVICE)
    late = late_features(
        settings, service, (), AS_OF + timedelta(days=2), timedelta(hours=1)
    )
    assert "loyalty: not materialised" in {each.incident for each in late}
    assert service.definitions().keys() >= {"loyalty", "customer_features"}
