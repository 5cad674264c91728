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

pytestmark = pytest.mark.filterwarnings(
    "ignore:On demand feature view is an experimental"
)
TICK = timedelta(microseconds=1)
KNOWN = {"customer_id": 1, "shop_code": "a"}
PERSON = {
    "count": Value(int64_val=300),
    "amount": Value(double_val=5e-324),
    "name": Value(string_val="x" * 128),
    "seen_us": Value(int64_val=int((NOON - 3 * DAY).timestamp() * 1e6)),
    "size": Value(int32_val=7),
    "ratio": Value(float_val=0.5),
    "member": Value(bool_val=False),
    "joined": Value(unix_timestamp_val=int((NOON - DAY).timestamp())),
}
STORED_ROWS = (PERSON, {"stock": Value(int64_val=7)}, {"visits": Value(int64_val=9)})
FEATURES = {
    "count": 300,
    "amount": 5e-324,
    "name": "x" * 128,
    "stock": 7,
    "visits": 9,
    "seen_days": 3,
    "label": f"{'x' * 128}!",
    "twice": 1e-323,
    "size": 7,
    "ratio": 0.5,
    "member": False,
    "joined": NOON - DAY,
    "since": NOON - DAY,
    "thrifty": True,
}


@pytest.fixture
def store(tmp_path):
    """Customer 1 in shop a; nothing materialised."""
    config = RepoConfig(
        project="gyre",
        provider="local",
        entity_key_serialization_version=3,
        registry=RegistryConfig(path=str(tmp_path / "registry.db")),
        online_store=SqliteOnlineStoreConfig(path=str(tmp_path / "online.db")),
    )
    store = feast.FeatureStore(config=config)
    services = [SERVICES[1], SERVICES[2], SERVICES[5]]
    store.apply(
        [shop.customer, shop.shop, *VIEWS, shop.DERIVED, shop.OFFERED, *services]
    )
    key = {"customer_id": Value(int64_val=1), "shop_code": Value(string_val="a")}
    for view, row in zip(VIEWS, STORED_ROWS, strict=True):
        joins = [join for join in key if join in view.join_keys]
        entity = EntityKey(join_keys=joins, entity_values=[key[join] for join in joins])
        rows = [(entity, row, NOON, None)]
        store.provider.online_store.online_write_batch(config, view, rows, None)
    return store


async def opened(tmp_path, store, service="mixed", names=NAMES):
    settings = new_settings(tmp_path)
    reader = FeastReader(settings, service, names, store)
    source = FeatureSource(settings, None, reader=reader)
    await source.probe()
    return source


def test_rows_are_those_of_the_store_and_nothing_older_than_its_time_to_live(
    tmp_path, store
):
    unknown = {"customer_id": 2, "shop_code": "b"}

    async def read():
        source = await opened(tmp_path, store)
        assert (source.problem, source.watermark) == (None, None)
        moments = [NOON + DAY, NOON + DAY + TICK, NOON]
        rows = await shop.online(source, [KNOWN, KNOWN, unknown], moments)
        await source.close()
        return rows

    young, old, nobody = asyncio.run(read())
    assert young == FEATURES | {"seen_days": 4}
    assert old == FEATURES | {"seen_days": 4, "stock": None}
    assert nobody == dict.fromkeys(NAMES) | {"label": "none!"}  # as the function has it


def test_a_service_of_an_on_demand_view_alone_knows_up_to_when_it_is_online(
    tmp_path, store
):
    store.apply(feast.FeatureService(name="derived", features=[shop.DERIVED]))
    person = store.get_feature_view("person")
    store.registry.apply_materialization(person, "gyre", NOON - DAY, NOON)
    reader = OnlineFeatures(new_settings(tmp_path), "derived", ["label"], store)
    assert reader.probe() == NOON


def test_request_data_reaches_the_store(tmp_path, store):
    offered = {
        "above": 12.5,
        "offer": f"ten:{'x' * 128}",
        "more": 2 + int(NOON.timestamp() * 1e6) % 7,
        "crates": 2,
        "third": 0.5,
        "bought": False,
        "late": NOON + timedelta(seconds=90),
    }
    row = {
        "customer_id": 1,
        "cart_value": 12.5,
        "coupon": "ten",
        "items": 2,
        "boxes": 5,
        "rate": 1.5,
        "gift": True,
        "due": NOON,
    }

    async def read():
        source = await opened(tmp_path, store, "offered", list(offered))
        rows = await shop.online(source, [row, row | {"items": 3}])
        await source.close()
        return rows

    assert asyncio.run(read()) == [offered, offered | {"more": offered["more"] + 1}]


def test_a_store_that_hangs_leaves_the_last_known_values(tmp_path, store):
    async def read():
        source = await opened(tmp_path, store)
        assert await shop.online(source, [KNOWN]) == [FEATURES]
        other = sqlite3.connect(tmp_path / "online.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")  # the store waits for 5 s
        rows, origin = await source.read([KNOWN], [NOON])
        assert (shop.features(rows), origin) == ([FEATURES], "cache")
        assert source.problem == "Feast: no answer within 0.5 s"
        other.close()
        while origin != "online":  # the read that waits for the store has the thread
            await source.probe()
            rows, origin = await source.read([KNOWN], [NOON])
        assert shop.features(rows) == [FEATURES]
        await source.close()

    asyncio.run(read())
