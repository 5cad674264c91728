"""Feast's offline store and ours, over the same tables."""

from datetime import timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
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


FORMATS = {"parquet": ParquetFormat(), "delta": DeltaFormat()}


VIEWS = {"customers": [customer], "shops": [shop], "pairs": [customer, shop]}


FEATURES = {"amount": Float64, "count": Int64, "name": String}


REFS = [f"{view}:{view}_{feature}" for view in VIEWS for feature in ("amount", "count")]


def with_nulls(rng, values, type_):
    return pa.array(values, type_, mask=rng.random(len(values)) < 0.1)


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
            "at": with_nulls(rng, moments, TIME),
            # Unique: ties have one answer.
            "created": pa.array(rng.permutation(n) * DAY, TIME),
            f"{view}_amount": with_nulls(rng, rng.random(n), pa.float64()),
            f"{view}_count": with_nulls(rng, rng.integers(0, 99, n), pa.int64()),
            f"{view}_name": with_nulls(rng, rng.choice(["x", "y", ""], n), pa.string()),
        }
    )


def definitions(folder, kind, ttl, created, mapping):
    """Return the objects of Feast, with views on files of a kind."""
    views = {}
    for view, entities in VIEWS.items():
        source = FileSource(
            name=f"{view}_source",
            path=f"{folder}/{view}.{kind}",
            file_format=FORMATS[kind],
            timestamp_field="at",
            created_timestamp_column=created,
            field_mapping=mapping,
        )
        schema = []
        for feature, dtype in FEATURES.items():
            column = f"{view}_{feature}"
            schema.append(Field(name=(mapping or {}).get(column, column), dtype=dtype))
        views[view] = FeatureView(
            name=view, entities=entities, ttl=ttl, schema=schema, source=source
        )
    customers = views["customers"]
    request = RequestSource(name="request", schema=[Field(name="as_of", dtype=Int64)])

    def summed(inputs):
        # `label` is a column of the entity frame that no source names: Feast passes all of them.
        labels = inputs.get("label", inputs["as_of"])
        columns = (inputs["customers_count"], inputs["as_of"], map(round, labels))
        rows = zip(*columns, strict=True)
        return {"sum": [None if None in row else sum(row) for row in rows]}

    sums = on_demand_feature_view(
        sources=[customers, request],
        schema=[Field(name="sum", dtype=Int64)],
        mode="python",
    )(summed)
    referrer = customers.with_name("referrer").with_join_key_map(
        {"customer_id": "referrer_id"}
    )
    aliased = [referrer[["customers_name"]], views["pairs"][["pairs_amount"]]]
    services = [
        FeatureService(name="plain", features=[customers[["customers_count"]], sums]),
        FeatureService(name="aliased", features=aliased),
    ]
    return [customer, shop, *views.values(), sums, *services]


def open_store(folder, objects, **offline_store):
    config = RepoConfig(
        project="test",
        provider="local",
        registry=f"{folder}/{offline_store['type']}.db",
        offline_store=offline_store,
        online_store=None,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply(objects)
    return store


def both_stores(folder, rng, ttl, created="created", mapping=None):
    """Feast's store on parquet, and ours on Delta tables of the same rows."""
    for view in VIEWS:
        rows = feature_rows(rng, view, 300, ties=bool(created))
        pq.write_table(rows, folder / f"{view}.parquet")
        for part in (rows.slice(0, 100), rows.slice(100)):
            write_deltalake(folder / f"{view}.delta", part, mode="append")
    in_parquet = definitions(folder, "parquet", ttl, created, mapping)
    in_delta = definitions(folder, "delta", ttl, created, mapping)
    return (
        open_store(folder, in_parquet, type="duckdb"),
        open_store(folder, in_delta, type=OURS, cache=f"{folder}/cache"),
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


def same_frames(stores, entities, features, *, asof, **options):
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
    if asof is not None:  # of a frame from Spark nothing is left to compute
        assert ("ASOF" in job.table.compile()) is asof
    stock_frame, our_frame = frames
    assert our_frame == stock_frame
    assert len(our_frame[1]) == len(entities)
    return our_frame[1]


HELPER_NAMES = ("_order", "_Time", "_number", "_row", "rn", "x_y", 'say "it\'s"', "a.b")


def odd_entity_rows(rng, n):
    """Entity frames that users have, by what is odd of each."""
    rows = entity_rows(rng, n)
    times = rows["event_timestamp"]
    return {
        "null times": rows.assign(
            event_timestamp=times.where(rng.random(len(rows)) < 0.8)
        ),
        "no time at all": rows.assign(event_timestamp=times.where(times.isna())),
        "names of our columns": rows.assign(**dict.fromkeys(HELPER_NAMES, 7)),
        "an index of its own": rows.set_index(pd.Index(range(9, len(rows) + 9))),
        "naive times": rows.assign(event_timestamp=times.dt.tz_localize(None)),
    }
