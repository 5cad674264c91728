"""The bulk writer leaves in a real Redis what Feast's own Redis store leaves, to the byte."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
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

from feature_engine.online.redis_rows import key_values
from feature_engine.online.writer import OnlineWriter, ViewValues
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
            "event_timestamp": pa.array(rng.choice(times, ROWS), TIME),
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


def open_store(folder, port, database, kind="redis"):
    """A store of Feast with a view of the rows, whose values are in a database of Redis."""
    address = f"127.0.0.1:{port},db={database}"
    online_store = {"type": "redis", "connection_string": address}
    if kind == "sqlite":
        online_store = {"type": "sqlite", "path": f"{folder}/online.db"}
    config = RepoConfig(
        project="test",
        provider="local",
        registry=f"{folder}/{database}.db",
        online_store=online_store,
        offline_store={"type": "duckdb"},
        batch_engine={"type": "local"},
        entity_key_serialization_version=3,
    )
    view = FeatureView(
        name="rows",
        entities=ENTITIES,
        schema=[Field(name=name, dtype=dtype) for name, dtype in FIELDS.items()],
        source=FileSource(
            path=f"{folder}/rows.parquet", timestamp_field="event_timestamp"
        ),
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
        values = ViewValues(store.get_feature_view("rows"), rows)
        OnlineWriter(store.config, Redis(port=port, db=1), is_locked=True).write(
            [values]
        )
        feast_hashes = hashes(Redis(port=port, db=0))
        assert len(feast_hashes) == ROWS
        assert hashes(Redis(port=port, db=1)) == feast_hashes


@pytest.mark.parametrize("is_locked", [True, False])
@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_rows_of_a_table_leave_out_keys_that_a_newer_raw_table_wrote(
    tmp_path, kind, is_locked
):
    """A refresh comes after the event consumer, with an older value and a deletion of its key."""
    rows = with_numbers(random_rows().slice(0, 3), [1, 2, 3])
    newer_rows = with_numbers(rows, [7, 8, 9])
    port = unused_port()
    with redis_server(port, tmp_path):
        store = open_store(tmp_path, port, 0, kind)
        view = store.get_feature_view("rows")
        feast_write = None if kind == "redis" else store.provider.ingest_df
        writer = OnlineWriter(
            store.config, Redis(port=port, db=0), feast_write, is_locked=is_locked
        )
        first, second, third = key_values(view, rows)
        writer.write([ViewValues(view, newer_rows.slice(0, 1))], raw_version=7)
        writer.write([ViewValues(view, rows.slice(0, 2), deleted=[first, third])])
        assert numbers(store, rows) == [7, 2, None]
        assert writer.keys_ahead("rows", [first, second, third]) == {first}
        assert writer.keys_ahead("rows", [first], raw_version=8) == set()
        writer.write([ViewValues(view, rows.slice(0, 0), deleted=[first, second])])
        assert numbers(store, rows) == [7, None, None]
        no_rows = ViewValues(view, rows.slice(0, 0), deleted=[first])
        writer.write([no_rows], raw_version=8)
        assert numbers(store, rows) == [None, None, None]


def with_numbers(rows, values):
    place = rows.column_names.index("int64")
    return rows.set_column(place, "int64", pa.array(values, pa.int64()))


def numbers(store, rows):
    """The feature `int64` of each row's entity, as Feast's own client reads it."""
    keys = rows.select(["customer_id", "shop_code"]).to_pylist()
    return store.get_online_features(["rows:int64"], keys).to_dict()["int64"]
