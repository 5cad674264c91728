"""Training frames of the ASOF store on Delta tables against Feast's own DuckDB store on parquet."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from feast import FeatureView, Field, FileSource
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.types import Int64, String

from core.errors import DataError
from tests.support.feature_engine.both_stores import (
    BEGIN,
    FOREVER,
    FORMATS,
    OURS,
    REFS,
    TIME,
    both_stores,
    customer,
    entity_rows,
    odd_entity_rows,
    open_store,
    same_frames,
    shop,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
    pytest.mark.filterwarnings("ignore:Saving dataset is an experimental"),
]


DAYS_5 = {"ttl": timedelta(days=5)}
RENAMED = {"mapping": {"pairs_count": "pieces"}}
FULL_NAMES = {"full_feature_names": True}
BY_CREATED = {"full_feature_names": True, "filter_by_created_timestamp": True}


@pytest.fixture(scope="module")
def random_frames(tmp_path_factory):
    """Gives both stores with views of some options, made once, and an entity frame."""
    made = {}

    def frames(view_options):
        key = repr(view_options)
        if key not in made:
            rng = np.random.default_rng(3)
            folder = tmp_path_factory.mktemp("stores")
            stores = both_stores(folder, rng, **view_options)
            made[key] = stores, entity_rows(rng, 400)
        return made[key]

    return frames


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
    random_frames, view_options, features, options, asof
):
    stores, entities = random_frames(view_options)
    # So few that rows of other entities are left out before the join.
    same_frames(stores, entities.head(20), features, asof=asof, **options)
    rows = same_frames(stores, entities, features, asof=asof, **options)
    values = pd.DataFrame(rows).drop(columns=[*entities.columns])
    shares = values.notna().mean()
    # Both outcomes are common; pairs of two keys are met less often.
    assert shares.max() > 0.1
    assert shares.min() > 0
    assert shares.max() < 0.95


@pytest.mark.journey
@pytest.mark.parametrize(
    ("ttl", "options"), [(FOREVER, {}), (timedelta(days=3), FULL_NAMES)]
)
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


@pytest.mark.parametrize("options", [{}, FULL_NAMES, BY_CREATED])
@pytest.mark.parametrize("features", [REFS, "plain"])
def test_a_column_of_the_frame_takes_no_features_place(
    random_frames, features, options, caplog
):
    (_, store), entities = random_frames({"ttl": FOREVER})
    entities = entities.head(50).reset_index(drop=True).assign(place=range(50))
    if features == "plain":
        features = store.get_feature_service(features)

    def frame_of(rows):
        job = store.get_historical_features(rows.copy(), features, **options)
        return job.to_arrow().sort_by([("place", "ascending")])

    plain = frame_of(entities)
    names = {*plain.column_names} - {*entities.columns}
    short_names = {name.rpartition("__")[2] for name in names}
    full_names = {f"customers__{name}" for name in short_names}
    other_cases = {name.upper() for name in names}
    assert not caplog.messages
    for name in (*names, *short_names, *full_names, *other_cases):
        caplog.clear()
        frame = frame_of(entities.assign(**{name: 700}))
        assert frame.select(plain.column_names).equals(plain), name
        assert frame.column_names.count(name) == (name in names or not caplog.messages)
        if name in names | other_cases:
            assert caplog.messages[0].endswith(f"the feature counts: {name}")


def test_a_feature_with_the_name_of_a_key_is_refused(tmp_path):
    folder = tmp_path / "homes.parquet"
    times = pa.array([BEGIN] * 2, TIME)
    rows = {"customer_id": [1, 2], "shop_code": ["a", "b"], "size": [7, 8], "at": times}
    pq.write_table(pa.table(rows), folder)
    source = FileSource(path=str(folder), timestamp_field="at")
    homes = FeatureView(
        name="homes",
        entities=[customer],
        schema=[Field(name="shop_code", dtype=String)],
        source=source,
    )
    sizes = FeatureView(
        name="sizes",
        entities=[shop],
        schema=[Field(name="size", dtype=Int64)],
        source=source,
    )
    store = open_store(tmp_path, [customer, shop, homes, sizes], type=OURS)
    moment = datetime.fromtimestamp(BEGIN / 1e6, UTC)
    entities = pd.DataFrame(
        {"customer_id": [1], "shop_code": ["b"], "event_timestamp": [moment]}
    )
    features = ["homes:shop_code", "sizes:size"]
    with pytest.raises(DataError, match="shop_code: expected a key or the time of the"):
        store.get_historical_features(entities.copy(), features)
    job = store.get_historical_features(entities, features, full_feature_names=True)
    (row,) = job.to_arrow().select(["homes__shop_code", "sizes__size"]).to_pylist()
    assert row == {"homes__shop_code": "a", "sizes__size": 8}


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
