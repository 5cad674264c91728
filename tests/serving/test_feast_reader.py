"""Feast's own reader behind a version, with Feast's SQLite online store."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import timedelta

import feast
import pytest
from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RegistryConfig, RepoConfig

from feature_repo.online import OnlineFeatures
from serving.features import FeastReader, FeatureSource
from tests.conftest import new_settings
from tests.serving import shop
from tests.serving.shop import DAY, NAMES, NOON, SERVICES, VIEWS

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
TICK = timedelta(microseconds=1)
SEVENTH = int(NOON.timestamp() * 1e6) % 7
FOUND = {"count": 300, "amount": 5e-324, "name": "x" * 128, "stock": 7, "visits": 9,
         "seen_days": 3, "label": f"{'x' * 128}!", "twice": 1e-323, "size": 7, "ratio": 0.5,
         "member": False, "joined": NOON - DAY, "since": NOON - DAY, "thrifty": True}  # fmt: skip


@pytest.fixture
def store(tmp_path):
    """Customer 1 in shop a; nothing materialised."""
    config = RepoConfig(
        project="gyre", provider="local", entity_key_serialization_version=3,
        registry=RegistryConfig(path=str(tmp_path / "registry.db")),
        online_store=SqliteOnlineStoreConfig(path=str(tmp_path / "online.db")),
    )  # fmt: skip
    store = feast.FeatureStore(config=config)
    on_demand = (shop.DERIVED, shop.OFFERED)
    store.apply([shop.customer, shop.shop, *VIEWS, *on_demand, *SERVICES[1:3], SERVICES[5]])
    seen = int((NOON - 3 * DAY).timestamp() * 1e6)
    rows = (
        {
            "count": 300,
            "amount": 5e-324,
            "name": "x" * 128,
            "seen_us": seen,
            "size": 7,
            "ratio": 0.5,
            "member": False,
            "joined": int((NOON - DAY).timestamp()),
        },
        {"stock": 7},
        {"visits": 9},
    )
    online = store._get_provider().online_store
    for view, row in zip(VIEWS, rows, strict=True):
        key = {"customer_id": Value(int64_val=1), "shop_code": Value(string_val="a")}
        joins = [join for join in key if join in view.join_keys]
        proto = EntityKey(join_keys=joins, entity_values=[key[join] for join in joins])
        online.online_write_batch(config, view, [(proto, values(row), NOON, None)], None)
    return store


def values(row):
    kinds = {int: "int64_val", float: "double_val", str: "string_val", bool: "bool_val"}
    named = {"size": "int32_val", "ratio": "float_val", "joined": "unix_timestamp_val"}
    return {n: Value(**{named.get(n, kinds[type(value)]): value}) for n, value in row.items()}


def source(tmp_path, store):
    settings = new_settings(tmp_path)
    return FeatureSource(settings, None, reader=FeastReader(settings, "mixed", NAMES, store))


def test_rows_are_those_of_the_store_and_nothing_older_than_its_time_to_live(tmp_path, store):
    known = {"customer_id": 1, "shop_code": "a"}
    unknown = {"customer_id": 2, "shop_code": "b"}

    async def read():
        features = source(tmp_path, store)
        await features.probe()
        moments = [NOON + DAY, NOON + DAY + TICK, NOON]
        found = await shop.online(features, [known, known, unknown], moments)
        assert (features.problem, features.watermark) == (None, None)
        await features.close()
        return found

    rows = asyncio.run(read())
    assert rows[0] == FOUND | {"seen_days": 4}
    assert rows[1] == FOUND | {"seen_days": 4, "stock": None}
    assert rows[2] == dict.fromkeys(NAMES) | {"label": "none!"}  # as the function has it


def test_a_service_of_an_on_demand_view_alone_knows_up_to_when_it_is_online(tmp_path, store):
    store.apply(feast.FeatureService(name="derived", features=[shop.DERIVED]))
    person = store.get_feature_view("person")
    store.registry.apply_materialization(person, "gyre", NOON - DAY, NOON)
    reader = OnlineFeatures(new_settings(tmp_path), "derived", ["label"], store)
    assert reader.probe() == NOON


def test_request_data_reaches_the_store(tmp_path, store):
    late = NOON + timedelta(seconds=90)
    typed = {"crates": 2, "third": 0.5, "bought": False, "late": late}
    row = {"customer_id": 1, "cart_value": 12.5, "coupon": "ten", "items": 2, "boxes": 5,
           "rate": 1.5, "gift": True, "due": NOON}  # fmt: skip

    async def read():
        settings, names = new_settings(tmp_path), ("above", "offer", "more", *typed)
        reader = FeastReader(settings, SERVICES[5].name, names, store)
        features = FeatureSource(settings, None, reader=reader)
        await features.probe()
        found = await shop.online(features, [row, row | {"items": 3}])
        await features.close()
        return found

    offered = {"above": 12.5, "offer": f"ten:{'x' * 128}", "more": 2 + SEVENTH} | typed
    assert asyncio.run(read()) == [offered, offered | {"more": 3 + SEVENTH}]


def test_a_store_that_fails_or_hangs_leaves_the_last_known_values(tmp_path, store):
    key = [{"customer_id": 1, "shop_code": "a"}]

    async def read():
        features = source(tmp_path, store)
        await features.probe()
        before = await shop.online(features, key)
        other = sqlite3.connect(tmp_path / "online.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")  # the store waits for 5 s
        during = await features.read(key, [NOON])
        problem = features.problem
        other.close()
        after = None, "cache"
        while after[1] != "online":  # the read that waits for the store has the thread
            await features.probe()
            after = await features.read(key, [NOON])
        await features.close()
        return before, during, problem, after

    before, during, problem, after = asyncio.run(read())
    assert before == shop.features(during[0]) == shop.features(after[0]) == [FOUND]
    assert (during[1], after[1], problem) == ("cache", "online", "Feast: no answer within 0.5 s")
