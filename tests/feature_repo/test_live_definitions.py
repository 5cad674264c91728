"""What a live model reads is not changed by `feast apply`; all else is."""

from __future__ import annotations

import subprocess
from datetime import timedelta

import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_contents import RepoContents
from feast.repo_operations import apply_total_with_repo_instance
from feast.types import Float64, Int64, String

from feature_repo.datasets import load_dataset
from feature_repo.extensions.registry import DefinitionInUseError
from feature_repo.freshness import freshness
from feature_repo.ingest import ingest
from feature_repo.store import FeatureStore, open_store
from stack.environment import process_environment
from stack.live import FOLDER, Live, write_live
from stack.settings import PROJECT
from tests.conftest import BIN
from tests.feature_repo.test_online_store import NOON, everything, key, row, write

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
DAY = timedelta(days=1)
MODEL, SERVICE = "customer_churn_model", "customer_churn_v1"
customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
moment = RequestSource(name="moment", schema=[Field(name="as_of", dtype=Int64)])


def view(name, fields, *, file="a.parquet", ttl=0):
    source = FileSource(name=f"{name}_source", path=f"anywhere/{file}", timestamp_field="at")
    schema = [Field(name=field, dtype=kind) for field, kind in fields.items()]
    return FeatureView(name=name, entities=[customer], schema=schema, source=source,
                       ttl=ttl * DAY)  # fmt: skip


def published(
    *, amount=Float64, asked=("amount", "count"), more=(), doubled=False, services=("v1",),
    unused=True, **source
):  # fmt: skip
    fields = {"amount": amount, "count": Int64, **dict.fromkeys(more, Int64)}
    of_orders = view("of_orders", fields, **source)

    def once(inputs):
        return {"age": inputs["as_of"]}

    def twice(inputs):
        return {"age": [2 * each for each in inputs["as_of"]]}

    age = on_demand_feature_view(
        sources=[of_orders, moment],
        schema=[Field(name="age", dtype=Int64)],
        mode="python",
        name="age",
    )(twice if doubled else once)
    visits = view("of_visits", {"amount": Float64, "count": Int64, "name": String})
    views = [of_orders, visits] if unused else [of_orders]
    made = [FeatureService(name=n, features=[of_orders[list(asked)], age]) for n in services]
    return RepoContents(
        projects=[], data_sources=[each.batch_source for each in views], entities=[customer],
        feature_views=views, on_demand_feature_views=[age], stream_feature_views=[],
        label_views=[], feature_services=made, permissions=[],
    )  # fmt: skip


def apply(settings, contents):
    """What `feast apply` does with what it found in a folder."""
    store = open_store(settings, 5)
    apply_total_with_repo_instance(
        store, store.project, store.registry, contents, skip_source_validation=False
    )
    return store


def is_live(settings, service, role="production"):
    live = [Live(MODEL, "3", role, service)]
    write_live(settings.home / "feast" / FOLDER, MODEL, live)


def registry_file(settings):
    return (settings.home / "feast" / "registry.db").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ttl": 30}, "of_orders.ttl: 0s -> 2592000s"),
        ({"asked": ["amount"]}, "service v1.features.of_orders.featureColumns.count: "),
        ({"amount": Int64}, "of_orders.features.amount.valueType: DOUBLE -> INT64"),
        ({"file": "b.parquet"}, "of_orders.batchSource.fileOptions.uri: a.parquet -> b.parquet"),
        ({"doubled": True}, "age.featureTransformation.userDefinedFunction.bodyText: "),
        ({"asked": ["amount", "count", "more"], "more": ["more"]}, "featureColumns.more: nothing"),
        ({"services": ["v2"]}, "service v1: "),
    ],
)
@pytest.mark.parametrize("role", ["production", "shadow"])
def test_what_a_live_model_reads_is_not_changed(applied, change, said, role):
    store = apply(applied, published())
    visits = store.get_feature_view("of_visits")
    write(store, visits, row(NOON, 1.0))
    before = registry_file(applied), everything(applied.redis_port, 0)
    is_live(applied, "v1", role)
    with pytest.raises(DefinitionInUseError) as refused:
        apply(applied, published(**change, unused=False))  # takes values of of_visits otherwise
    assert said in str(refused.value)
    assert f"version 3 of {MODEL} ({role}) reads v1" in str(refused.value)
    assert (registry_file(applied), everything(applied.redis_port, 0)) == before
    is_live(applied, "another")
    apply(applied, published(**change, unused=False))
    assert registry_file(applied) != before[0]


def test_all_else_is_changed(applied):
    apply(applied, published())
    is_live(applied, "v1")
    many = {"more": ["more"], "services": ["v1", "v2"]}
    for change in ({}, {"more": ["more"]}, many, {"more": ["more"], "unused": False}):
        store = apply(applied, published(**change))
    assert [each.name for each in store.list_feature_services()] == ["v1"]
    assert [each.name for each in store.list_feature_views()] == ["of_orders"]


def test_a_view_published_again_has_no_values_of_before(applied, as_of):
    ingest(applied, "orders", as_of)
    store, gone = open_store(applied, 5), 999_999  # a customer of whom no order is known
    shipped, online = (
        store.get_feature_view("customer_features"),
        store._get_provider().online_store,
    )
    values = {"lifetime_orders": Value(int64_val=7)}
    online.online_write_batch(
        store.config, shipped, [(key(customer_id=gone), values, as_of, None)], None
    )

    def orders(customer):
        rows = [{"customer_id": customer}]
        found = store.get_online_features(["customer_features:lifetime_orders"], rows)
        return found.to_dict()["lifetime_orders"]

    store.apply([], objects_to_delete=[shipped], partial=False)
    published_again = FeatureView.from_proto(shipped.to_proto())
    published_again.materialization_intervals = []
    store.apply(published_again)
    assert orders(gone) == [7]
    assert freshness(applied, "orders").not_built == (
        "customer_features: applied, not built (never brought online); run: gyre ingest orders",
    )
    before = orders(4)
    ingest(applied, "orders", as_of)
    assert (orders(gone), orders(4)) == ([None], before)
    assert freshness(applied, "orders").not_built == ()


def test_ingest_and_the_shipped_definitions_again_are_no_change(applied, as_of):
    is_live(applied, SERVICE)
    before = FeatureStore(applied).definition_hash(SERVICE)
    ingest(applied, "orders", as_of)
    assert FeatureStore(applied).watermark(load_dataset("orders")) == as_of
    assert FeatureStore(applied).definition_hash(SERVICE) == before


def test_the_command_says_it_in_a_line(applied, tmp_path):
    is_live(applied, SERVICE)
    (tmp_path / "definitions.py").write_text(
        "from datetime import timedelta\n"
        "from feature_repo.datasets.orders import *\n"
        "customer_features_view.ttl = timedelta(days=30)\n"
    )
    before = registry_file(applied)
    done = subprocess.run(
        [str(BIN / "feast"), "-c", str(tmp_path), "apply"],
        env=process_environment(applied) | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"Error: refused, nothing was changed: version 3 of {MODEL}" in done.stderr
    assert "GYRE_CHANGE_LIVE_FEATURES=true feast apply" in done.stderr
    assert registry_file(applied) == before


def test_who_knows_what_he_does_is_let_through(applied, monkeypatch):
    apply(applied, published())
    is_live(applied, "v1")
    monkeypatch.setenv("GYRE_CHANGE_LIVE_FEATURES", "true")
    assert apply(applied, published(ttl=30)).get_feature_view("of_orders").ttl == 30 * DAY
