"""Parity on real orders, and that it would notice a difference."""

from datetime import timedelta
from time import time_ns

import pytest
from feast import FeatureService, Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

from core.errors import DataError
from feature_engine.ingest.pipeline import ingest
from feature_engine.parity import parity
from feature_repo.published.store import open_store
from tests.conftest import AS_OF

SERVICE = "customer_churn_v1"


def test_online_values_equal_offline_values_for_every_customer_in_any_online_store(
    small, tmp_path
):
    with pytest.raises(DataError, match="gyre ingest orders"):
        parity(small, SERVICE, [AS_OF])
    ingest(small, "orders", AS_OF)
    # With a time to live, for which the store's clock must be the moment's.
    store = open_store(small, 60)
    view = store.get_feature_view("customer_features")
    view.ttl = timedelta(days=30)
    store.apply(view)
    moments = (AS_OF - timedelta(days=200), AS_OF)
    other_store = {"type": "sqlite", "path": str(tmp_path / "online.db")}
    report = parity(
        small.model_copy(update={"online_store": other_store}), SERVICE, moments
    )
    assert (report.entities, report.features, report.differences) == (1_000, 10, ())
    assert "2 moments: 20000 values, 0 differences" in report.summary()
    assert not (tmp_path / "online.db").exists(), (
        "the installation's own store is only read"
    )


@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
def test_a_feature_that_changes_at_each_call_is_named(small):
    ingest(small, "orders", AS_OF)
    store = open_store(small, 60)

    def restless(inputs):
        from time import time_ns  # noqa: PLC0415  (Feast stores the function alone)

        return {"instant": [time_ns() for _ in inputs["lifetime_orders"]]}

    view = on_demand_feature_view(
        sources=[store.get_feature_view("customer_features")],
        schema=[Field(name="instant", dtype=Int64)],
        mode="python",
    )(restless)
    store.apply([view, FeatureService(name="restless", features=[view])])
    before = time_ns()
    report = parity(small, "restless", [AS_OF])
    assert (report.entities, len(report.differences)) == (1_000, 1_000)
    line = report.summary().splitlines()[1]
    assert "'customer_id': " in line
    assert f" instant: offline {before // 10**12}" in line


@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
def test_an_entity_before_its_first_row_has_no_value_of_request_data_alone(small):
    ingest(small, "orders", AS_OF)
    store = open_store(small, 60)
    request = RequestSource(name="cart", schema=[Field(name="cart", dtype=Float64)])

    def worth(inputs):
        return {"worth": [value * 2 for value in inputs["cart"]]}

    view = on_demand_feature_view(
        sources=[request], schema=[Field(name="worth", dtype=Float64)], mode="python"
    )(worth)
    stored_view = store.get_feature_view("customer_features")
    service = FeatureService(name="carts", features=[stored_view, view])
    store.apply([view, service])
    before_all = AS_OF - timedelta(days=10_000)
    assert parity(small, "carts", [before_all, AS_OF]).differences == ()
