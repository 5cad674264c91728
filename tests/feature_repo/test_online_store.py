"""What the online store leaves in a real Redis, against Feast's own Redis store."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from feast.types import Float64, Int64, String
from redis import Redis

from core.settings import PROJECT
from tests.conftest import redis_server, unused_port
from tests.preloaded import commands_folder

OURS = "feature_repo.extensions.online.NewestOnlineStore"
TICK = timedelta(microseconds=1)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
shop = Entity(name="shop", join_keys=["shop_code"], value_type=ValueType.STRING)


def view(name, *entities):
    source = FileSource(name=f"{name}_source", path="unused.parquet", timestamp_field="at")
    schema = [
        Field(name="amount", dtype=Float64),
        Field(name="count", dtype=Int64),
        Field(name="name", dtype=String),
    ]
    return FeatureView(name=name, entities=list(entities), schema=schema, source=source)


ORDERS, VISITS = view("orders", customer), view("visits", customer)
OF_SHOP, OF_BOTH = view("of_shop", shop), view("of_both", customer, shop)
OBJECTS = [customer, shop, ORDERS, VISITS, OF_SHOP, OF_BOTH]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    port = unused_port()
    with redis_server(port, tmp_path_factory.mktemp("redis")):
        yield port


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    registry = tmp_path_factory.mktemp("registry") / "registry.db"
    open_store(registry, 1).apply(OBJECTS)
    return registry


def open_store(registry, port, db=0, kind=OURS, **options):
    return FeatureStore(
        config=RepoConfig(
            project="test",
            provider="local",
            registry=str(registry),
            online_store={"type": kind, "connection_string": f"127.0.0.1:{port},db={db}"} | options,
            offline_store={"type": "duckdb"},
            entity_key_serialization_version=3,
        )
    )


@pytest.fixture
def store(port, registry):
    for db in range(3):
        Redis(port=port, db=db).flushdb()
    return open_store(registry, port)


def key(**parts):
    values = [
        Value(string_val=part) if isinstance(part, str) else Value(int64_val=part)
        for part in parts.values()
    ]
    return EntityKey(join_keys=list(parts), entity_values=values)


def row(at, amount, **parts):
    values = {
        "amount": Value(double_val=amount),
        "count": Value(int64_val=round(amount)),
        "name": Value(),
    }
    return key(**(parts or {"customer_id": 1})), values, at, None


def write(store, table, *rows, one_by_one=False):
    online = store._get_provider().online_store
    for batch in [[each] for each in rows] if one_by_one else [rows]:
        online.online_write_batch(store.config, table, batch, None)


def amounts(store, table, *customers):
    found = store.get_online_features(
        [f"{table.name}:amount"], [{"customer_id": n} for n in customers]
    )
    return found.to_dict()["amount"]


def everything(port, db):
    redis = Redis(port=port, db=db)
    return {name: redis.hgetall(name) for name in redis.scan_iter()}


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("times", "wins"),
    [
        ([NOON, NOON], 1),  # a correction
        ([NOON, NOON - TICK], 0),
        ([NOON, NOON + TICK], 1),
        ([NOON - TICK, NOON.replace(microsecond=0)], 1),  # no nanos: the field is left out
        ([NOON, NOON - timedelta(days=300), NOON - TICK], 0),
        ([datetime(1965, 1, 1, tzinfo=UTC), datetime(1965, 1, 1, tzinfo=UTC) + TICK], 1),
        ([datetime(1965, 1, 1, tzinfo=UTC), datetime(1964, 1, 1, tzinfo=UTC)], 0),
        ([datetime(1965, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)], 1),
        ([datetime(2200, 1, 1, tzinfo=UTC), datetime(1965, 1, 1, tzinfo=UTC)], 0),
    ],
)
def test_only_a_strictly_newer_row_refuses_a_write(store, times, wins, at_once):
    rows = [row(at, amount=float(n)) for n, at in enumerate(times)]
    write(store, ORDERS, *rows, one_by_one=not at_once)
    assert amounts(store, ORDERS, 1) == [float(wins)]


def test_views_that_share_a_hash_have_an_event_time_each(store):
    write(store, ORDERS, row(NOON, 1.0))
    write(store, VISITS, row(NOON - TICK, 2.0))
    write(store, ORDERS, row(NOON - TICK, 3.0))
    assert (amounts(store, ORDERS, 1), amounts(store, VISITS, 1)) == ([1.0], [2.0])


def test_bytes_are_the_stock_stores_for_every_kind_of_key(store, registry, port):
    stock = open_store(registry, port, db=1, kind="redis")
    for n in range(200):  # more than one call of the script
        code = ["a", "", "ü", "a:1"][n % 4] + str(n)
        for each in (store, stock):
            write(each, ORDERS, row(NOON + n * TICK, float(n), customer_id=n - 100))
            write(each, OF_SHOP, row(NOON, float(n), shop_code=code))
            write(each, OF_BOTH, row(NOON, float(n), shop_code=code, customer_id=n))
    ours = everything(port, 0)
    assert len(ours) == 600
    assert ours == everything(port, 1)


def test_a_stock_client_reads_what_was_written(store, registry, port):
    write(store, OF_BOTH, row(NOON, 7.0, shop_code="ü", customer_id=3))
    stock = open_store(registry, port, kind="redis")
    rows = [{"customer_id": 3, "shop_code": "ü"}, {"customer_id": 4, "shop_code": "ü"}]
    found = stock.get_online_features(["of_both:amount", "of_both:name"], rows).to_dict()
    assert (found["amount"], found["name"]) == ([7.0, None], [None, None])


def test_rows_of_one_batch_may_lack_features(store):
    late, early = row(NOON, 5.0), row(NOON, 1.0, customer_id=2)
    del late[1]["count"]
    write(store, ORDERS, early, late, row(NOON, 6.0, customer_id=3))
    assert amounts(store, ORDERS, 1, 2, 3) == [5.0, 1.0, 6.0]


def test_keys_expire_where_that_is_asked_for(store, registry, port):
    expiring = open_store(registry, port, key_ttl_seconds=100)
    write(expiring, ORDERS, row(NOON, 1.0))
    redis = Redis(port=port)
    assert [redis.ttl(name) for name in redis.scan_iter()] == [pytest.approx(100, abs=5)]


def test_older_rows_are_written_where_that_is_asked_for(store, registry, port):
    write(store, ORDERS, row(NOON, 1.0))
    write(open_store(registry, port, skip_dedup=True), ORDERS, row(NOON - TICK, 2.0))
    assert amounts(store, ORDERS, 1) == [2.0]


def test_a_redis_cluster_is_refused(registry):
    with pytest.raises(ValueError, match="redis_type"):
        _ = open_store(registry, 1, redis_type="redis_cluster").config.online_store


def test_rewriting_lowers_and_removes_one_view_and_nothing_else(store):
    write(store, ORDERS, *(row(NOON, 1.0, customer_id=n) for n in (1, 2, 3)))
    write(store, VISITS, row(NOON, 9.0, customer_id=2))
    write(store, OF_BOTH, row(NOON, 8.0, shop_code="a", customer_id=2))
    online = store._get_provider().online_store
    with online.rewriting(store.config, ORDERS):
        write(store, ORDERS, row(NOON - TICK, 4.0, customer_id=1))
        assert amounts(store, ORDERS, 1, 2, 3) == [4.0, 1.0, 1.0]  # readers miss nothing
    assert amounts(store, ORDERS, 1, 2, 3) == [4.0, None, None]
    assert amounts(store, VISITS, 2) == [9.0]
    write(store, ORDERS, row(NOON - 2 * TICK, 5.0, customer_id=1))
    assert amounts(store, ORDERS, 1) == [4.0]  # older rows are skipped again


def test_a_rewrite_that_fails_removes_nothing(store):
    write(store, ORDERS, row(NOON, 1.0), row(NOON, 2.0, customer_id=2))
    online = store._get_provider().online_store
    with pytest.raises(RuntimeError), online.rewriting(store.config, ORDERS):
        raise RuntimeError
    assert amounts(store, ORDERS, 1, 2) == [1.0, 2.0]


def write_shuffled(registry, port, seed):
    store = open_store(registry, port)
    rows = [row(NOON + n * TICK, float(n), customer_id=n // 3) for n in range(3_000)]
    random.Random(seed).shuffle(rows)
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    for start in range(0, len(rows), 500):
        write(store, ORDERS, *rows[start : start + 500])


def test_three_writers_at_once_leave_no_wrong_key(store, registry, port):
    calls = [f"write_shuffled({str(registry)!r}, {port}, {seed})" for seed in range(3)]
    code = "from tests.feature_repo.test_online_store import write_shuffled; "
    pipes = {"cwd": PROJECT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    python = commands_folder() / "python"
    writers = [subprocess.Popen([python, "-c", code + call], **pipes) for call in calls]
    for writer in writers:
        while writer.stdout.readline() != "ready\n":
            assert writer.poll() is None
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=600)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    found = amounts(store, ORDERS, *range(1_000))
    assert [n for n in range(1_000) if found[n] != n * 3 + 2.0] == []


def test_a_redis_that_restarts_while_rows_are_written_misses_none(registry, tmp_path):
    port = unused_port()
    store = open_store(registry, port)
    rows = [row(NOON + n * TICK, float(n), customer_id=n) for n in range(4_000)]
    for _, values, _, _ in rows[2_000:]:
        del values["count"]  # what has other features is written by another call

    with ExitStack() as servers:
        servers.enter_context(redis_server(port, tmp_path))

        def restart(_written):
            Redis(port=port).shutdown()  # its append-only file is complete
            servers.close()
            servers.enter_context(redis_server(port, tmp_path))

        store._get_provider().online_store.online_write_batch(store.config, ORDERS, rows, restart)
        assert amounts(store, ORDERS, *range(4_000)) == [float(n) for n in range(4_000)]


def test_a_forgotten_script_is_learnt_again(store, port):
    for amount in (1.0, 2.0):
        Redis(port=port).script_flush()
        write(store, ORDERS, *(row(NOON, amount, customer_id=n) for n in range(130)))
    assert amounts(store, ORDERS, 0, 129) == [2.0, 2.0]
