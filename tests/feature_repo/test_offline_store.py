"""Training frames of the ASOF store on Delta tables against Feast's own DuckDB store on parquet."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
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
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.repo_config import RepoConfig
from feast.types import Float64, Int64, String

pytestmark = [
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
    pytest.mark.filterwarnings("ignore:Saving dataset is an experimental"),
]
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


DAYS_5 = {"ttl": timedelta(days=5)}
RENAMED = {"mapping": {"pairs_count": "pieces"}}
FULL_NAMES = {"full_feature_names": True}
BY_CREATED = {"full_feature_names": True, "filter_by_created_timestamp": True}


@pytest.mark.parametrize(
    ("view_options", "features", "options", "asof"),
    [
        ({"ttl": FOREVER}, REFS, {}, True),
        ({"ttl": timedelta(days=3), "created": ""}, REFS, {}, True),
        ({"ttl": timedelta(hours=23)}, REFS, {}, True),
        (DAYS_5, REFS, FULL_NAMES, True),
        (DAYS_5, "plain", {}, True),
        (DAYS_5, "aliased", {}, False),
        (DAYS_5, REFS, BY_CREATED, False),
        (DAYS_5 | RENAMED, ["pairs:pieces"], {}, False),
    ],
)
def test_random_frames_equal_those_of_feasts_own_store(
    tmp_path, view_options, features, options, asof
):
    rng = np.random.default_rng(3)
    stores = both_stores(tmp_path, rng, **view_options)
    entities = entity_rows(rng, 400)
    # So few that rows of other entities are left out before the join.
    same_frames(stores, entities.head(20), features, asof=asof, **options)
    rows = same_frames(stores, entities, features, asof=asof, **options)
    values = pd.DataFrame(rows).drop(columns=[*entities.columns])
    shares = values.notna().mean()
    # Both outcomes are common; pairs of two keys are met less often.
    assert shares.max() > 0.1
    assert shares.min() > 0
    assert shares.max() < 0.95


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


@pytest.mark.parametrize("options", [{}, FULL_NAMES])
@pytest.mark.parametrize("ttl", [FOREVER, timedelta(days=3)])
def test_odd_frames_get_the_features_of_feasts_own_store_and_keep_their_columns(
    tmp_path, ttl, options
):
    rng = np.random.default_rng(4)
    stores = both_stores(tmp_path, rng, ttl)
    frames = odd_entity_rows(rng, 300)
    for entities in frames.values():
        same_frames(stores, entities, REFS, asof=True, **options)
    entities = entity_rows(rng, 50).assign(entity_row_id=range(70))
    table = stores[1].get_historical_features(entities.copy(), REFS).to_arrow()
    assert sorted(table["entity_row_id"].to_pylist()) == [*range(70)]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("options", [{}, BY_CREATED])
def test_frames_and_rows_of_tables_are_saved_and_read_again(tmp_path, kind, options):
    rng = np.random.default_rng(5)
    _, store = both_stores(tmp_path, rng, FOREVER)
    job = store.get_historical_features(entity_rows(rng, 30), REFS, **options)
    frame = job.to_arrow()
    path = tmp_path / f"saved.{kind}"
    storage = SavedDatasetFileStorage(str(path), file_format=FORMATS[kind])
    saved = store.create_saved_dataset(job, f"saved_{kind}", storage)
    feature_names = [
        name for name in frame.column_names if name.endswith(("amount", "count"))
    ]
    assert len(feature_names) == len(REFS)
    rows = saved.to_arrow().select(feature_names)
    assert sorted(rows.to_pylist(), key=repr) == sorted(
        frame.select(feature_names).to_pylist(), key=repr
    )
    source = store.get_feature_view("customers").batch_source
    pull = {
        "config": store.config,
        "data_source": source,
        "join_key_columns": ["customer_id"],
        "feature_name_columns": ["customers_count"],
        "timestamp_field": "at",
        "created_timestamp_column": "created",
        "start_date": datetime.fromtimestamp(BEGIN / 1e6, UTC),
        "end_date": datetime.fromtimestamp(BEGIN / 1e6, UTC) + timedelta(days=9),
    }
    provider = store._get_provider().offline_store
    for pulled in ("pull_latest_from_table_or_query", "pull_all_from_table_or_query"):
        job = getattr(provider, pulled)(**pull)
        target = tmp_path / f"{pulled}.{kind}"
        job.persist(SavedDatasetFileStorage(str(target), file_format=FORMATS[kind]))
        stored = (
            DeltaTable(target).to_pyarrow_table()
            if kind == "delta"
            else pq.read_table(target)
        )
        assert 0 < stored.num_rows == job.to_arrow().num_rows
