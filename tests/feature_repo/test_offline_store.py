"""Training frames of the ASOF store on Delta tables against Feast's own DuckDB store on parquet."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

from tests.support.feature_engine.both_stores import (
    BEGIN,
    FOREVER,
    FORMATS,
    REFS,
    both_stores,
    entity_rows,
    odd_entity_rows,
    same_frames,
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
def test_a_column_of_the_frame_takes_no_features_place(random_frames, options):
    (_, store), entities = random_frames({"ttl": FOREVER})
    entities = entities.head(50).reset_index(drop=True).assign(place=range(50))
    order = [("place", "ascending")]
    plain = store.get_historical_features(entities.copy(), REFS, **options).to_arrow()
    plain = plain.sort_by(order)
    features = [name for name in plain.column_names if name not in entities.columns]
    taken = entities.assign(**dict.fromkeys(features, 700.0))
    frame = store.get_historical_features(taken, REFS, **options).to_arrow()
    assert frame.sort_by(order).select(plain.column_names).equals(plain)


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
