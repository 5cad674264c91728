"""The bulk writer leaves in a real Redis what Feast's own Redis store leaves, to the byte."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.repo_config import RepoConfig
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
)
from redis import Redis

from feature_engine.online.redis_rows import write_rows
from tests.conftest import redis_server, unused_port

TIME = pa.timestamp("us", tz="UTC")
BEGIN = datetime(1960, 1, 1, tzinfo=UTC)
END = datetime(2100, 1, 1, tzinfo=UTC)
ROWS = 300
FIELDS = {
    "int64": Int64,
    "int32": Int32,
    "double": Float64,
    "float": Float32,
    "flag": Bool,
    "text": String,
    "time": UnixTimestamp,
    "bytes": Bytes,
    "list": Array(Int64),
}
ENTITIES = [
    Entity(name="shop", join_keys=["shop_code"], value_type=ValueType.STRING),
    Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64),
]


def random_rows():
    rng = np.random.default_rng(0)

    def choice(values, kind):
        return pa.array(rng.choice(values, ROWS), kind, mask=rng.random(ROWS) < 0.1)

    edges = [0, 1, -1, 127, 128, 2**31 - 1, -(2**31)]
    # Beyond 2**53 Feast loses digits next to nulls.
    large = [2**53 - 1, -(2**53) + 1, 2**35]
    # Whole seconds have no nanoseconds.
    times = [0, 5, -1, 1_000_000, -(10**14), 2 * 10**15 - 7]
    return pa.table(
        {
            "customer_id": pa.array(rng.permutation(ROWS) - ROWS // 2, pa.int64()),
            "shop_code": [f"{'äß€'[n % 3]}{'x' * n}" for n in range(ROWS)],
            "at": pa.array(rng.choice(times, ROWS), TIME),
            "int64": choice(edges + large, pa.int64()),
            "int32": pa.array(rng.choice(edges, ROWS), pa.int32()),
            "double": choice([0.0, -0.0, np.inf, np.nan, 5e-324], pa.float64()),
            "float": choice([0.0, 1.5, -np.inf, np.nan], pa.float32()),
            "flag": choice([True, False], pa.bool_()),
            "text": choice(["", "ü", "x" * 300], pa.string()),
            "bytes": choice([b"\0", b"\xff" * 9], pa.binary()),
            "time": choice(times, TIME),
            "list": [[n, n + 1] for n in range(ROWS)],
        }
    )


def open_store(folder, port, database):
    """A store of Feast with a view of the rows, whose values are in a database of Redis."""
    address = f"127.0.0.1:{port},db={database}"
    config = RepoConfig(
        project="test",
        provider="local",
        registry=f"{folder}/{database}.db",
        online_store={"type": "redis", "connection_string": address},
        offline_store={"type": "duckdb"},
        batch_engine={"type": "local"},
        entity_key_serialization_version=3,
    )
    view = FeatureView(
        name="rows",
        entities=ENTITIES,
        schema=[Field(name=name, dtype=dtype) for name, dtype in FIELDS.items()],
        source=FileSource(path=f"{folder}/rows.parquet", timestamp_field="at"),
    )
    store = FeatureStore(config=config)
    store.apply([*ENTITIES, view])
    return store


def hashes(redis):
    return {name: redis.hgetall(name) for name in redis.scan_iter(count=10_000)}


def test_random_rows_equal_those_of_feasts_own_store_to_the_byte(tmp_path):
    rows = random_rows()
    pq.write_table(rows, tmp_path / "rows.parquet")
    port = unused_port()
    with redis_server(port, tmp_path):
        open_store(tmp_path, port, 0).materialize(BEGIN, END)
        store = open_store(tmp_path, port, 1)
        with Redis(port=port, db=1).pipeline(transaction=False) as pipe:
            write_rows(pipe, store.config, store.get_feature_view("rows"), rows)
            pipe.execute()
        feast_hashes = hashes(Redis(port=port, db=0))
        assert len(feast_hashes) == ROWS
        assert hashes(Redis(port=port, db=1)) == feast_hashes
