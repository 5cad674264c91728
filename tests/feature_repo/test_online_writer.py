"""The bulk writer leaves in a real Redis what Feast's own Redis store leaves, to the byte."""

from __future__ import annotations

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

from feature_repo.online_writer import (
    delete_rows,
    hash_names,
    key_values,
    scan_keys,
    write_rows,
)
from tests.conftest import redis_server, unused_port

TIME = pa.timestamp("us", tz="UTC")
BEGIN, END = datetime(1960, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
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
customer = Entity(
    name="customer", join_keys=["customer_id"], value_type=ValueType.INT64
)
shop = Entity(name="shop", join_keys=["shop_code"], value_type=ValueType.STRING)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    port = unused_port()
    with redis_server(port, tmp_path_factory.mktemp("redis")):
        yield port


def random_rows(seed):
    rng = np.random.default_rng(seed)

    def with_nulls(values, kind):
        return pa.array(values, kind, mask=rng.random(ROWS) < 0.1)

    numbers = [0.0, -0.0, np.inf, np.nan, 5e-324]
    edges = [0, 1, -1, 127, 128, 2**31 - 1, -(2**31)]
    large = [
        2**53 - 1,
        -(2**53) + 1,
        2**35,
    ]  # beyond them Feast loses digits beside nulls
    microseconds = rng.integers(-(10**14), 2 * 10**15, ROWS)
    microseconds[::7] -= (
        microseconds[::7] % 1_000_000
    )  # whole seconds have no nanoseconds
    microseconds[:3] = (0, 5, -1)
    return pa.table(
        {
            "customer_id": pa.array(rng.permutation(ROWS) - ROWS // 2, pa.int64()),
            "shop_code": [
                f"{'äß€'[number % 3]}{'x' * number}" for number in range(ROWS)
            ],
            "at": pa.array(microseconds, TIME),
            "int64": with_nulls(rng.choice(edges + large, ROWS), pa.int64()),
            "int32": pa.array(rng.choice(edges, ROWS), pa.int32()),
            "double": with_nulls(rng.choice(numbers, ROWS), pa.float64()),
            "float": with_nulls(
                rng.choice([0.0, 1.5, -np.inf, np.nan], ROWS), pa.float32()
            ),
            "flag": with_nulls(rng.random(ROWS) < 0.5, pa.bool_()),
            "text": with_nulls(rng.choice(["", "ü", "x" * 300], ROWS), pa.string()),
            "bytes": with_nulls(rng.choice([b"\0", b"\xff" * 9], ROWS), pa.binary()),
            "time": with_nulls(microseconds, TIME),
            "list": pa.array([[number, number + 1] for number in range(ROWS)]),
        }
    )


class Stores:
    """A view whose rows Feast's own store writes into database 0, and the bulk writer into 1."""

    def __init__(self, folder, port, rows, entities):
        pq.write_table(rows, folder / "rows.parquet")
        source = FileSource(
            name="rows", path=str(folder / "rows.parquet"), timestamp_field="at"
        )
        schema = [Field(name=name, dtype=dtype) for name, dtype in FIELDS.items()]
        self.view = FeatureView(
            name="rows", entities=entities, schema=schema, source=source
        )
        self.stores = []
        self.redis = [Redis(port=port, db=database) for database in (0, 1)]
        for database in (0, 1):
            self.redis[database].flushdb()
            config = RepoConfig(
                project="test",
                provider="local",
                registry=str(folder / f"{database}.db"),
                online_store={
                    "type": "redis",
                    "connection_string": f"127.0.0.1:{port},db={database}",
                },
                offline_store={"type": "duckdb"},
                batch_engine={"type": "local"},
                entity_key_serialization_version=3,
            )
            self.stores.append(FeatureStore(config=config))
            self.stores[database].apply([*entities, self.view])
        self.view = self.stores[1].get_feature_view("rows")
        self.config = self.stores[1].config

    def write(self, rows):
        with self.redis[1].pipeline(transaction=False) as pipe:
            write_rows(pipe, self.config, self.view, rows)
            pipe.execute()

    def delete(self, keys):
        with self.redis[1].pipeline(transaction=False) as pipe:
            delete_rows(
                pipe, self.config, self.view, hash_names(self.config, self.view, keys)
            )
            pipe.execute()

    def hashes(self, database):
        redis = self.redis[database]
        return {name: redis.hgetall(name) for name in redis.scan_iter(count=10_000)}


@pytest.mark.parametrize("entities", [[customer], [shop], [shop, customer]])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_random_rows_are_those_of_feasts_own_store_to_the_byte(
    port, tmp_path, entities, seed
):
    rows = random_rows(seed)
    stores = Stores(tmp_path, port, rows, entities)
    stores.stores[0].materialize(BEGIN, END)
    stores.write(rows)
    hashes = stores.hashes(1)
    assert len(hashes) == ROWS
    assert hashes == stores.hashes(0)


def test_feasts_own_client_reads_what_was_written_and_nothing_after_it_was_deleted(
    port, tmp_path
):
    rows = random_rows(0)
    stores = Stores(tmp_path, port, rows, [shop, customer])
    stores.write(rows)
    first, second = rows.slice(0, 2).select(["customer_id", "shop_code"]).to_pylist()
    texts = rows["text"].to_pylist()
    keys = key_values(stores.view, rows)
    stores.delete(keys[1:2])
    values = stores.stores[1].get_online_features(
        ["rows:text", "rows:int64"], [first, second]
    )
    assert values.to_dict()["text"] == [texts[0], None]
    names = {name for name, _ in scan_keys(stores.redis[1], stores.config, stores.view)}
    assert len(names) == ROWS - 1
    assert {
        key for _, key in scan_keys(stores.redis[1], stores.config, stores.view)
    } == {
        keys[0],
        *keys[2:],
    }
