"""Materialising by columns against Feast's own engine and store: same keys, same bytes."""

from __future__ import annotations

from datetime import UTC, datetime

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.repo_config import RepoConfig
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from redis import Redis

from feature_repo.datasets.orders import FEATURES, customer, customer_features_view
from feature_repo.extensions import engine
from feature_repo.features import _in_microseconds
from tests.conftest import redis_server, unused_port

STOCK = {"online_store": "redis", "offline_store": "duckdb", "batch_engine": "local"}
ROOM = "feature_repo.extensions"
OURS = {
    "online_store": f"{ROOM}.online.NewestOnlineStore",
    "offline_store": f"{ROOM}.offline.AsofOfflineStore",
    "batch_engine": f"{ROOM}.engine.ArrowComputeEngine",
}
TIME = pa.timestamp("us", tz="UTC")
BEGIN, END = datetime(1960, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)

shop = Entity(name="shop", join_keys=["shop_code"], value_type=ValueType.STRING)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    port = unused_port()
    with redis_server(port, tmp_path_factory.mktemp("redis")):
        yield port


def materialised(folder, port, objects, begin=BEGIN, end=END):
    """Fill database 0 the stock way and 1 in ours; return both stores."""
    stores = []
    for db, kinds in enumerate([STOCK, OURS]):
        Redis(port=port, db=db).flushdb()
        parts = {name: {"type": kind} for name, kind in kinds.items()}
        parts["online_store"]["connection_string"] = f"127.0.0.1:{port},db={db}"
        config = RepoConfig(
            project="test",
            provider="local",
            registry=str(folder / f"{db}.db"),
            entity_key_serialization_version=3,
            **parts,
        )
        stores.append(FeatureStore(config=config))
        stores[-1].apply(objects)
        stores[-1].materialize(begin, end)
    return stores


def everything(port, db):
    redis = Redis(port=port, db=db)
    names = list(redis.scan_iter(count=10_000))
    with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(name)
        return dict(zip(names, pipe.execute(), strict=True))


def test_real_customers_are_the_stock_stores_to_the_byte(port, tmp_path, some_orders):
    orders = pq.read_table(some_orders)
    known = orders.append_column("ingested_at", orders["order_ts"])
    connection = ibis.duckdb.connect()
    connection.raw_sql("SET TimeZone = 'UTC'")
    pq.write_table(known, tmp_path / "orders.parquet")
    rows = FEATURES(connection.read_parquet(tmp_path / "orders.parquet")).to_pyarrow()
    source = FileSource(
        name="customer_features",
        path=str(tmp_path / "features.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    pq.write_table(_in_microseconds(rows), source.path)
    view = FeatureView(
        name="customer_features",
        entities=[customer],
        schema=customer_features_view.features,
        source=source,
    )
    stock, ours = materialised(tmp_path, port, [customer, view])
    found = everything(port, 1)
    assert len(found) == 1_000
    assert found == everything(port, 0)
    intervals = [
        store.get_feature_view("customer_features").materialization_intervals
        for store in (stock, ours)
    ]
    assert intervals[0] == intervals[1] != []


def random_rows(seed, n):
    rng = np.random.default_rng(seed)

    def some(values, type_):
        return pa.array(values, type_, mask=rng.random(n) < 0.1)

    edges = [0, 1, -1, 127, 128, 2**31 - 1, -(2**31)]
    far = [2**53 - 1, -(2**53) + 1, 2**35]
    micros = rng.integers(-(10**14), 2 * 10**15, n)
    micros[::7] -= micros[::7] % 1_000_000  # whole seconds have no nanos
    micros[:3] = (0, 5, -1)
    return pa.table(
        {
            "customer_id": pa.array(rng.permutation(n) - n // 2, pa.int64()),
            "shop_code": pa.array([f"{'äß€'[k % 3]}{'x' * (k % 200)}{k}" for k in range(n)]),
            "at": pa.array(micros, TIME),
            "i64": some(rng.choice(edges + far, n), pa.int64()),
            "i32": pa.array(rng.choice(edges, n), pa.int32()),
            "f64": some(rng.choice([0.0, -0.0, 1.5, np.inf, np.nan, 5e-324], n), pa.float64()),
            "f32": some(rng.choice([0.0, 1.5, -np.inf, np.nan], n), pa.float32()),
            "flag": some(rng.random(n) < 0.5, pa.bool_()),
            "text": some(rng.choice(["", "ü", "x" * 300], n), pa.string()),
            "raw": some(rng.choice([b"\0", b"\xff" * 9], n), pa.binary()),
            "when": some(micros, TIME),
            "list": pa.array([[k, k + 1] for k in range(n)], pa.list_(pa.int64())),
        }
    )


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))]
FIELDS = {"i64": Int64, "f64": Float64, "text": String}
FIELDS |= {"i32": Int32, "f32": Float32, "flag": Bool, "when": UnixTimestamp}
OTHERS = FIELDS | {"raw": Bytes, "list": Array(Int64)}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("entities", [[customer], [shop], [shop, customer]])
@pytest.mark.parametrize("fields", [FIELDS, OTHERS], ids=["encoded", "others"])
def test_random_rows_are_the_stock_stores_to_the_byte(port, tmp_path, seed, entities, fields):
    rows = random_rows(seed, 300).rename_columns({"i32": "mapped"})
    pq.write_table(rows, tmp_path / "rows.parquet")
    source = FileSource(
        name="rows",
        path=str(tmp_path / "rows.parquet"),
        timestamp_field="at",
        field_mapping={"mapped": "i32"},
    )
    schema = [Field(name=name, dtype=dtype) for name, dtype in fields.items()]
    view = FeatureView(name="rows", entities=entities, schema=schema, source=source)
    materialised(tmp_path, port, [*entities, view])
    found = everything(port, 1)
    assert len(found) == 300
    assert found == everything(port, 0)


def test_whole_numbers_beside_nulls_stay_exact(port, tmp_path):
    # Feast's engine takes them through floats: 2**53 + 1 arrives as 2**53.
    number = 2**53 + 1
    rows = {"customer_id": [1, 2], "at": pa.array([1, 1], TIME), "i64": [number, None]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    source = FileSource(name="rows", path=str(tmp_path / "rows.parquet"), timestamp_field="at")
    schema = [Field(name="i64", dtype=Int64)]
    view = FeatureView(name="rows", entities=[customer], schema=schema, source=source)
    _, ours = materialised(tmp_path, port, [customer, view])
    found = ours.get_online_features(["rows:i64"], [{"customer_id": 1}, {"customer_id": 2}])
    assert found.to_dict()["i64"] == [number, None]


def test_only_rows_of_the_interval_are_written_and_of_each_entity_the_newest(port, tmp_path):
    micros = [1_000_000, 2_000_000, 2_000_000, 3_000_000, 9_000_000]
    rows = {
        "customer_id": [1, 1, 1, 2, 1],
        "at": pa.array(micros, TIME),
        "made": pa.array([0, 2, 1, 0, 0], TIME),
        "i64": [1, 2, 3, 4, 5],
    }
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    source = FileSource(
        name="rows",
        path=str(tmp_path / "rows.parquet"),
        timestamp_field="at",
        created_timestamp_column="made",
    )
    schema = [Field(name="i64", dtype=Int64)]
    view = FeatureView(name="rows", entities=[customer], schema=schema, source=source)
    end = datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC)
    _, ours = materialised(tmp_path, port, [customer, view], end=end)
    found = ours.get_online_features(["rows:i64"], [{"customer_id": 1}, {"customer_id": 2}])
    assert found.to_dict()["i64"] == [2, 4]
    assert everything(port, 0) == everything(port, 1)


def test_every_known_type_is_encoded_and_not_left_to_feast():
    assert {field.to_value_type() for field in FIELDS.values()} == set(engine.ENCODED)
