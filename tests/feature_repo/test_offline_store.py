"""Training frames of the ASOF store on Delta tables against Feast's own DuckDB store on parquet."""

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

pytestmark = pytest.mark.filterwarnings(
    "ignore:On demand feature view is an experimental"
)
OURS = "feature_repo.extensions.offline.AsofOfflineStore"
TIME = pa.timestamp("us", tz="UTC")
BEGIN = 1_750_000_000_000_000
DAY = 86_400_000_000
MOMENTS = 40  # few, so that ties, exact hits and expiries to the microsecond are common
FOREVER = timedelta(0)

customer = Entity(
    name="customer", join_keys=["customer_id"], value_type=ValueType.INT64
)
shop = Entity(name="shop", join_keys=["shop_code"], value_type=ValueType.STRING)
VIEWS = {"customers": [customer], "shops": [shop], "pairs": [customer, shop]}
FEATURES = {"amount": Float64, "count": Int64, "name": String}
REFS = [f"{view}:{view}_{feature}" for view in VIEWS for feature in ("amount", "count")]


def with_nulls(rng, values, type_, share=0.1):
    return pa.array(values, type_, mask=rng.random(len(values)) < share)


def feature_rows(rng, view, n, *, ties):
    """Rows of a view. Without a created time a tie has no right answer, so no view may have one."""
    shops = rng.choice(["a", "a:1", "", "ü"], n)
    moments = BEGIN + rng.integers(0, MOMENTS, n) * DAY
    if not ties:
        moments = BEGIN + rng.permutation(n) * (MOMENTS * DAY // n)
    return pa.table(
        {
            "customer_id": with_nulls(rng, rng.integers(0, 9, n), pa.int64()),
            "shop_code": with_nulls(rng, shops, pa.string()),
            "at": with_nulls(rng, moments, TIME, share=0.05),
            # Unique: ties have one answer.
            "created": pa.array(rng.permutation(n) * DAY, TIME),
            f"{view}_amount": with_nulls(rng, rng.random(n), pa.float64()),
            f"{view}_count": with_nulls(rng, rng.integers(0, 99, n), pa.int64()),
            f"{view}_name": with_nulls(rng, rng.choice(["x", "y", ""], n), pa.string()),
        }
    )


def definitions(folder, ttl, *, delta, created=True, mapping=None):
    """Feast objects by name. delta: views that are Delta tables; all others are parquet files."""
    objects = {"customer": customer, "shop": shop}
    for view, entities in VIEWS.items():
        source = FileSource(
            name=f"{view}_source",
            path=f"{folder}/{view}" if view in delta else f"{folder}/{view}.parquet",
            file_format=DeltaFormat() if view in delta else ParquetFormat(),
            timestamp_field="at",
            created_timestamp_column="created" if created else "",
            field_mapping=mapping,
        )
        schema = []
        for feature, dtype in FEATURES.items():
            column = f"{view}_{feature}"
            schema.append(Field(name=(mapping or {}).get(column, column), dtype=dtype))
        objects[view] = FeatureView(
            name=view, entities=entities, ttl=ttl, schema=schema, source=source
        )
    customers = objects["customers"]
    request = RequestSource(name="request", schema=[Field(name="as_of", dtype=Int64)])

    def summed(inputs):
        # `label` is a column of the entity frame that no source names: Feast passes all of them.
        labels = inputs.get("label", inputs["as_of"])
        columns = (inputs["customers_count"], inputs["as_of"], map(round, labels))
        rows = zip(*columns, strict=True)
        return {"sum": [None if None in row else sum(row) for row in rows]}

    objects["summed"] = on_demand_feature_view(
        sources=[customers, request],
        schema=[Field(name="sum", dtype=Int64)],
        mode="python",
    )(summed)
    referrer = customers.with_name("referrer").with_join_key_map(
        {"customer_id": "referrer_id"}
    )
    plain = [customers[["customers_count"]], objects["summed"]]
    aliased = [referrer[["customers_name"]], objects["pairs"][["pairs_amount"]]]
    objects["plain"] = FeatureService(name="plain", features=plain)
    objects["aliased"] = FeatureService(name="aliased", features=aliased)
    return objects


def open_store(folder, kind, objects):
    options = {} if kind == "duckdb" else {"cache": f"{folder}/cache"}
    config = RepoConfig(
        project="test",
        provider="local",
        registry=f"{folder}/{kind}.db",
        offline_store={"type": kind} | options,
        online_store=None,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply([*objects.values()])
    return store


def both_stores(folder, rng, ttl, *, delta=VIEWS, **options):
    """Feast's store on parquet, and ours on Delta tables of the same rows."""
    for view in VIEWS:
        rows = feature_rows(rng, view, 300, ties=options.get("created", True))
        pq.write_table(rows, folder / f"{view}.parquet")
        for part in (rows.slice(0, 100), rows.slice(100)):
            write_deltalake(folder / view, part, mode="append")
    return (
        open_store(folder, "duckdb", definitions(folder, ttl, delta=(), **options)),
        open_store(folder, OURS, definitions(folder, ttl, delta=delta, **options)),
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


def same_frames(stores, entities, features=REFS, *, asof=True, **options):
    """Compare the frames of both stores, which may order rows and columns as they like."""
    frames = []
    for store in stores:
        is_service = isinstance(features, str)
        job = store.get_historical_features(
            entity_df=entities.copy(),
            features=store.get_feature_service(features) if is_service else features,
            **options,
        )
        table = job.to_arrow()
        table = table.select(sorted(table.column_names))
        frames.append((table.schema, sorted(table.to_pylist(), key=repr)))
    assert ("ASOF" in job.table.compile()) is asof
    stock_frame, our_frame = frames
    assert our_frame == stock_frame
    assert len(our_frame[1]) == len(entities)
    return our_frame[1]


@pytest.mark.parametrize(
    ("created", "ttl"),
    [
        (True, FOREVER),
        (False, timedelta(days=3)),
        (True, timedelta(hours=23)),
    ],
)
def test_random_frames_equal_those_of_feasts_own_store(tmp_path, created, ttl):
    rng = np.random.default_rng([0, created])
    stores = both_stores(tmp_path, rng, ttl, created=created)
    entities = entity_rows(rng, 400)
    rows = same_frames(stores, entities)
    share = np.mean([row["customers_count"] is not None for row in rows])
    assert 0.1 < share < 0.95  # both outcomes are common
    # So few that rows of other entities are left out before the join.
    same_frames(stores, entities.head(20))


BY_CREATED = {"full_feature_names": True, "filter_by_created_timestamp": True}
RENAMED = {"pairs_count": "pieces"}


@pytest.mark.parametrize(
    ("features", "options", "delta", "mapping", "asof"),
    [
        ("plain", {}, VIEWS, None, True),
        ("aliased", {}, VIEWS, None, False),
        (REFS, BY_CREATED, VIEWS, None, False),
        (["pairs:pieces"], {}, VIEWS, RENAMED, False),
    ],
)
def test_frames_of_other_services_views_and_options_equal_those_of_feasts_own_store(
    tmp_path, features, options, delta, mapping, asof
):
    rng = np.random.default_rng(3)
    ttl = timedelta(days=5)
    stores = both_stores(tmp_path, rng, ttl, delta=delta, mapping=mapping)
    entities = entity_rows(rng, 200)
    rows = same_frames(stores, entities, features, asof=asof, **options)
    for name in rows[0].keys() - {*entities.columns}:
        assert any(row[name] is not None for row in rows)
