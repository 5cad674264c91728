"""Training frames of the ASOF store on Delta tables against Feast's own DuckDB store on parquet."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RequestSource,
    ValueType,
)
from feast.data_format import DeltaFormat, ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.repo_config import RepoConfig
from feast.types import Float64, Int64, String

from tests.s3 import s3_server

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
OURS = "feature_repo.extensions.offline.AsofOfflineStore"
TIME = pa.timestamp("us", tz="UTC")
BEGIN = 1_750_000_000_000_000
DAY = 86_400_000_000
MOMENTS = 40  # few, so that ties, exact hits and expiries to the microsecond are common
FOREVER = timedelta(0)

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
shop = Entity(name="shop", join_keys=["shop_code"], value_type=ValueType.STRING)
VIEWS = {"of_customer": [customer], "of_shop": [shop], "of_both": [customer, shop]}
REFS = [f"{view}:{feature}" for view in VIEWS for feature in ("amount", "count")]


def moments(rng, n):
    return pa.array(BEGIN + rng.integers(0, MOMENTS, n) * DAY, TIME)


def with_nulls(rng, values, type_):
    return pa.array(values, type_, mask=rng.random(len(values)) < 0.1)


def feature_rows(rng, n, *, ties):
    rows = pa.table(
        {
            "customer_id": with_nulls(rng, rng.integers(0, 9, n), pa.int64()),
            "shop_code": with_nulls(rng, rng.choice(["a", "a:1", "", "ü"], n), pa.string()),
            "at": pa.array(moments(rng, n), TIME, mask=rng.random(n) < 0.05),
            "made": pa.array(rng.permutation(n) * DAY, TIME),  # unique: ties have one answer
            "amount": with_nulls(rng, rng.random(n), pa.float64()),
            "count_": with_nulls(rng, rng.integers(0, 99, n), pa.int64()),
            "name": with_nulls(rng, rng.choice(["x", "y", ""], n), pa.string()),
        }
    )
    if ties:
        return rows
    # Without a created time a tie has no right answer, so no view may have one.
    frame = rows.to_pandas(types_mapper=pd.ArrowDtype)
    for keys in (["customer_id"], ["shop_code"]):
        frame = frame.drop_duplicates([*keys, "at"])
    return pa.Table.from_pandas(frame, preserve_index=False).cast(rows.schema)


def definitions(folder, ttl, *, created, delta):
    """Feast objects by name. delta: views that are Delta tables; all others are parquet files."""
    schema = [
        Field(name="amount", dtype=Float64),
        Field(name="count", dtype=Int64),
        Field(name="name", dtype=String),
    ]
    objects = {"customer": customer, "shop": shop}
    for name, entities in VIEWS.items():
        source = FileSource(
            name=f"{name}_source",
            path=f"{folder}/{name}" if name in delta else f"{folder}/{name}.parquet",
            file_format=DeltaFormat() if name in delta else ParquetFormat(),
            timestamp_field="at",
            created_timestamp_column="made" if created else "",
            field_mapping={"count_": "count"},
        )
        objects[name] = FeatureView(
            name=name, entities=entities, ttl=ttl, schema=schema, source=source
        )
    request = RequestSource(name="request", schema=[Field(name="as_of", dtype=Int64)])

    def summed(inputs):
        # `label` is a column of the entity frame that no source names: Feast passes all of them.
        labels = inputs.get("label", inputs["as_of"])
        rows = zip(inputs["count"], inputs["as_of"], map(round, labels), strict=True)
        return {"sum": [None if None in row else sum(row) for row in rows]}

    of_customer = objects["of_customer"]
    objects["summed"] = on_demand_feature_view(
        sources=[of_customer, request], schema=[Field(name="sum", dtype=Int64)], mode="python"
    )(summed)
    referrer = of_customer.with_name("referrer").with_join_key_map({"customer_id": "referrer_id"})
    objects["plain"] = FeatureService(
        name="plain", features=[of_customer[["count"]], objects["summed"]]
    )
    objects["aliased"] = FeatureService(
        name="aliased", features=[referrer[["name"]], objects["of_both"][["amount"]]]
    )
    return objects


def open_store(folder, kind, objects):
    config = RepoConfig(
        project="test",
        provider="local",
        registry=f"{folder}/{kind}.db",
        offline_store={"type": kind} | ({} if kind == "duckdb" else {"cache": f"{folder}/cache"}),
        online_store=None,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply([*objects.values()])
    return store


def both_stores(folder, rng, ttl=FOREVER, *, created=True, kind=OURS):
    """Feast's store on parquet, and ours on Delta tables of the same rows."""
    for name in VIEWS:
        rows = feature_rows(rng, 300, ties=created)
        pq.write_table(rows, folder / f"{name}.parquet")
        for start in (0, 100):
            part = rows.slice(start, 100 if start == 0 else None)
            write_deltalake(folder / name, part, mode="append")
    return (
        open_store(folder, "duckdb", definitions(folder, ttl, created=created, delta=())),
        open_store(folder, kind, definitions(folder, ttl, created=created, delta=VIEWS)),
    )


def entity_rows(rng, n):
    # Before the first event, at events, and a microsecond beside them.
    times = BEGIN + rng.integers(-3, MOMENTS + 9, n) * DAY + rng.integers(-1, 2, n)
    rows = pd.DataFrame(
        {
            "customer_id": pd.array(rng.integers(0, 10, n), "Int64"),
            "referrer_id": rng.integers(0, 9, n),
            "shop_code": rng.choice(["a", "a:1", "", "ü", "unknown"], n),
            "event_timestamp": pd.to_datetime(times, unit="us", utc=True),
            "as_of": rng.integers(0, 5, n),
            "label": rng.random(n),
        }
    )
    rows.loc[rng.random(n) < 0.05, "customer_id"] = pd.NA
    return pd.concat([rows, rows.sample(20, random_state=1)], ignore_index=True)


def same_frames(stores, entities, features=REFS, **options):
    """Compare the frames of both stores, which may order rows and columns as they like."""
    frames = []
    for store in stores:
        requested = store.get_feature_service(features) if isinstance(features, str) else features
        job = store.get_historical_features(
            entity_df=entities.copy(), features=requested, **options
        )
        table = job.to_arrow()
        table = table.select(sorted(table.column_names))
        frames.append((table.schema, sorted(table.to_pylist(), key=repr)))
    stock_frame, our_frame = frames
    assert our_frame == stock_frame
    assert len(our_frame[1]) == len(entities)
    return our_frame[1]


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2, 3))]
)
@pytest.mark.parametrize("created", [True, False])
@pytest.mark.parametrize("ttl", [FOREVER, timedelta(days=3), timedelta(hours=23)])
def test_random_frames_are_the_stock_stores(tmp_path, seed, created, ttl):
    rng = np.random.default_rng([seed, created])
    stores = both_stores(tmp_path, rng, ttl, created=created)
    rows = same_frames(stores, entity_rows(rng, 400), full_feature_names=True)
    share = np.mean([row["of_customer__count"] is not None for row in rows])
    assert 0.1 < share < 0.95  # both outcomes are common


def test_a_time_to_live_may_be_days_and_hours(tmp_path):
    """The stock store fails on it."""
    counts = []
    for hours in (24, 36, 48):
        folder = tmp_path / str(hours)
        folder.mkdir()
        _, ours = both_stores(folder, np.random.default_rng(1), timedelta(hours=hours))
        entities = entity_rows(np.random.default_rng(9), 200)
        frame = ours.get_historical_features(entity_df=entities, features=REFS[:1]).to_df()
        counts.append(frame["amount"].count())
    assert counts[0] <= counts[1] < counts[2]


@pytest.mark.parametrize("full_feature_names", [False, True])
def test_on_demand_views_aliases_and_join_key_maps_are_the_stock_stores(
    tmp_path, full_feature_names
):
    rng = np.random.default_rng(7)
    stores = both_stores(tmp_path, rng, timedelta(days=5))
    entities = entity_rows(rng, 300)
    options = {"full_feature_names": full_feature_names}
    rows = same_frames(stores, entities, "plain", **options)
    name = "summed__sum" if full_feature_names else "sum"
    assert any(row[name] is not None for row in rows)
    same_frames(stores, entities, "aliased", **options)


def test_rows_made_later_are_hidden_on_request_as_in_the_stock_store(tmp_path):
    rng = np.random.default_rng(3)
    stores = both_stores(tmp_path, rng)
    options = {"full_feature_names": True, "filter_by_created_timestamp": True}
    same_frames(stores, entity_rows(rng, 100), **options)


def test_views_of_parquet_files_are_joined_by_asof_only_beside_a_delta_table(tmp_path):
    rng = np.random.default_rng(5)
    stock, ours = both_stores(tmp_path, rng)
    others = []
    for delta in ((), ("of_customer",)):
        folder = tmp_path / f"beside-{len(delta)}"
        folder.mkdir()
        objects = definitions(tmp_path, FOREVER, created=True, delta=delta)
        others.append(open_store(folder, OURS, objects))
    parquet, mixed = others
    entities = entity_rows(rng, 50)
    for store, is_asof in ((ours, True), (stock, False), (parquet, False), (mixed, True)):
        job = store.get_historical_features(entity_df=entities.copy(), features=REFS[:2])
        assert ("ASOF" in job.table.compile()) is is_asof
    same_frames((stock, parquet), entities, full_feature_names=True)
    same_frames((stock, mixed), entities, full_feature_names=True)


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_an_open_store_reads_the_rows_of_the_newest_commit(tmp_path, monkeypatch, place):
    with s3_server(tmp_path, monkeypatch) if place == "s3" else nullcontext():
        folder = "s3://gyre/views" if place == "s3" else str(tmp_path)
        objects = definitions(folder, FOREVER, created=True, delta=VIEWS)
        del objects["plain"], objects["aliased"], objects["summed"]
        sample = feature_rows(np.random.default_rng(1), 1, ties=True)
        keys = {"customer_id": 1, "shop_code": "a"}
        moment = pd.to_datetime(BEGIN + 99 * DAY, unit="us", utc=True)
        entities = pd.DataFrame([keys | {"event_timestamp": moment}])
        store = None
        for day in (1, 2):
            row = keys | {"at": BEGIN + day * DAY, "made": BEGIN, "count_": day}
            for name in VIEWS:
                rows = pa.Table.from_pylist([row], sample.schema)
                write_deltalake(f"{folder}/{name}", rows, mode="append")
            store = store or open_store(tmp_path, OURS, objects)
            job = store.get_historical_features(
                entity_df=entities.copy(), features=["of_both:count"]
            )
            assert job.to_df()["count"].tolist() == [day]
