"""Ingest end to end: a source that changes, real Delta tables, Feast and Redis."""

import pytest
from feast import FeatureStore
from redis import Redis

from core.errors import DataError
from feature_engine.offline.views import require_built, unbuilt_views
from feature_repo.datasets.orders import FEATURES
from feature_repo.published.service import PublishedService
from tests.conftest import AS_OF
from tests.support.feature_engine.shop import (
    DAY,
    HOUR,
    ORDERS,
    SPEC,
    VIEW,
    order,
    shop,  # noqa: F401  (a fixture)
)


def test_a_service_is_refused_while_a_view_lacks_the_rows_of_its_expression(
    shop, monkeypatch
):
    service = PublishedService(shop.settings, SPEC.feature_service)
    unbuilt = r"^customer_features: applied, not built \({}\); run: gyre ingest orders$"
    with pytest.raises(DataError, match=unbuilt.format("no rows yet")):
        require_built(service)
    shop.has(order(1, 1, AS_OF - DAY))
    shop.ingest(AS_OF)
    require_built(service)
    monkeypatch.setitem(ORDERS.views, VIEW, lambda rows: FEATURES(rows).limit(1))
    reason = "its rows are of another expression"
    with pytest.raises(DataError, match=unbuilt.format(reason)):
        require_built(service)
    (problem,) = unbuilt_views(shop.settings, ORDERS, service.stored)
    assert reason in problem


def test_orders_become_rows_and_online_values_and_a_second_ingest_changes_nothing(shop):
    shop.has()
    with pytest.raises(DataError, match="no rows yet"):
        shop.ingest(AS_OF)
    shop.has(order(1, 1, AS_OF - 10 * DAY, 5.0), order(2, 1, AS_OF - 40 * DAY, 7.0))
    report = shop.ingest(AS_OF)
    assert (report.inserted, report.replaced, report.quarantined) == (2, 0, 0)
    values = shop.online(AS_OF, 1, 99)
    assert values == [
        {
            "total_orders_30d": 1,
            "total_orders_90d": 2,
            "total_spend_30d": 5.0,
            "total_spend_90d": 12.0,
            "lifetime_orders": 2,
            "lifetime_value": 12.0,
            "avg_order_value": 6.0,
            "customer_segment": "repeat",
            "days_since_last_order": 10,
            "customer_tenure_days": 40,
        },
        None,
    ]
    repeated = shop.ingest(AS_OF)
    assert (repeated.inserted, repeated.table_version) == (0, report.table_version)
    shop.ingest(AS_OF - 20 * DAY)  # never turns the online store back
    assert shop.online(AS_OF, 1, 99) == values


def test_an_ingest_opens_feasts_store_and_redis_once(shop, monkeypatch):
    shop.has(order(1, 1, AS_OF - DAY))
    shop.ingest(AS_OF)
    stores = []
    open_feast = FeatureStore.__init__

    def note_opening(store, *arguments, **options):
        stores.append(store)
        open_feast(store, *arguments, **options)

    monkeypatch.setattr(FeatureStore, "__init__", note_opening)
    with Redis.from_url(shop.settings.redis_address) as redis:
        before = redis.info("stats")["total_connections_received"]
        shop.has(order(1, 1, AS_OF - DAY), order(2, 1, AS_OF))
        shop.ingest(AS_OF + HOUR)
        after = redis.info("stats")["total_connections_received"]
    # One for the features, and one for the events that wait.
    assert (len(stores), after - before) == (1, 2)
