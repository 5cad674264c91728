"""Views that are published again, and ingest beside them."""

from __future__ import annotations

from datetime import timedelta

from feast import FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.datasets import load_dataset
from feature_repo.ingest import ingest
from feature_repo.service import PublishedService, unbuilt_views
from feature_repo.store import open_store

SERVICE = "customer_churn_v1"
UNKNOWN = 999_999
"""A customer without an order."""


def test_a_view_published_again_and_materialized_by_hand_has_no_values_of_before(
    small, as_of
):
    ingest(small, "orders", as_of)
    store = open_store(small, 60)
    shipped = store.get_feature_view("customer_features")
    key = EntityKey(join_keys=["customer_id"], entity_values=[Value(int64_val=UNKNOWN)])
    rows = [(key, {"lifetime_orders": Value(int64_val=7)}, as_of, None)]
    store.provider.online_store.online_write_batch(store.config, shipped, rows, None)

    def orders(customer):
        values = store.get_online_features(
            ["customer_features:lifetime_orders"], [{"customer_id": customer}]
        )
        return values.to_dict()["lifetime_orders"]

    store.apply([], objects_to_delete=[shipped], partial=False)
    published_again = FeatureView.from_proto(shipped.to_proto())
    published_again.materialization_intervals = [(as_of, as_of + timedelta(days=1))]
    store.apply(published_again)
    assert orders(UNKNOWN) == [7]
    before = orders(4)
    ingest(small, "orders", as_of)
    assert orders(UNKNOWN) == [None]
    assert orders(4) == before
    assert unbuilt_views(small, load_dataset("orders")) == []


def test_ingest_is_no_change_of_definitions(small, as_of):
    before = PublishedService(small, SERVICE).definitions()
    ingest(small, "orders", as_of)
    assert PublishedService(small, SERVICE).definitions() == before
