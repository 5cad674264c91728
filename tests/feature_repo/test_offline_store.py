"""Training frames of the ASOF store against those of Feast's own DuckDB store."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
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
from feast.on_demand_feature_view import on_demand_feature_view
from feast.repo_config import RepoConfig
from feast.types import Float64, Int64, String

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
OURS = "feature_repo.extensions.offline.AsofOfflineStore"
TIME = pa.timestamp("us", tz="UTC")
BEGIN, DAY = 1_750_000_000_000_000, 86_400_000_000
MOMENTS = 40  # few, so that ties, exact hits and expiries to the microsecond are common

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
shop = Entity(name="shop", join_keys=["shop_code"], value_type=ValueType.STRING)


def moments(rng, n):
    return pa.array(BEGIN + rng.integers(0, MOMENTS, n) * DAY, TIME)


def with_nulls(rng, values, type_):
    return pa.array(values, type_, mask=rng.random(len(values)) < 0.1)


def feature_rows(rng, n, *, ties):
    at = moments(rng, n)
    rows = pa.table(
        {
            "customer_id": with_nulls(rng, rng.integers(0, 9, n), pa.int64()),
            "shop_code": with_nulls(rng, rng.choice(["a", "a:1", "", "ü"], n), pa.string()),
            "at": pa.array(at, TIME, mask=rng.random(n) < 0.05),
            "made": pa.array(rng.permutation(n) * DAY, TIME),  # unique: ties have one answer
            "amount": with_nulls(rng, rng.random(n), pa.float64()),
            "count_": with_nulls(rng, rng.integers(0, 99, n), pa.int64()),
            "name": with_nulls(rng, rng.choice(["x", "y", ""], n), pa.string()),
        }
    )
    if ties:
        return rows
    frame = rows.to_pandas(types_mapper=pd.ArrowDtype)
    frame = frame.drop_duplicates(["customer_id", "shop_code", "at"])
    # Without a created time a tie would have no right answer, so no view may see one.
    frame = frame.drop_duplicates(["customer_id", "at"]).drop_duplicates(["shop_code", "at"])
    return pa.Table.from_pandas(frame, preserve_index=False).cast(rows.schema)


def view(path, name, entities, ttl, created):
    source = FileSource(
        name=f"{name}_source",
        path=str(path),
        timestamp_field="at",
        created_timestamp_column="made" if created else "",
        field_mapping={"count_": "count"},
    )
    schema = [
        Field(name="amount", dtype=Float64),
        Field(name="count", dtype=Int64),
        Field(name="name", dtype=String),
    ]
    return FeatureView(name=name, entities=entities, ttl=ttl, schema=schema, source=source)


def definitions(folder, rng, ttl, *, created):
    views = {}
    for name, entities in {
        "of_customer": [customer],
        "of_shop": [shop],
        "of_both": [customer, shop],
    }.items():
        path = folder / f"{name}.parquet"
        pq.write_table(feature_rows(rng, 300, ties=created), path)
        views[name] = view(path, name, entities, ttl, created)
    request = RequestSource(name="request", schema=[Field(name="as_of", dtype=Int64)])

    def added(inputs):
        # `label` is a column of the entity frame that no source names: Feast passes all of them.
        more = inputs.get("label", inputs["as_of"])
        pairs = zip(inputs["count"], inputs["as_of"], map(round, more), strict=True)
        return {"sum": [None if None in pair else sum(pair) for pair in pairs]}

    summed = on_demand_feature_view(
        sources=[views["of_customer"], request],
        schema=[Field(name="sum", dtype=Int64)],
        mode="python",
    )(added)
    return [customer, shop, *views.values(), request, summed]


def stores(folder, objects, ours=OURS):
    for name, kind in {"stock": "duckdb", "ours": ours}.items():
        config = RepoConfig(
            project="test",
            provider="local",
            registry=str(folder / f"{name}.db"),
            offline_store={"type": kind},
            online_store=None,
            entity_key_serialization_version=3,
        )
        store = FeatureStore(config=config)
        store.apply(objects)
        yield store


def entity_rows(rng, n):
    rows = pd.DataFrame(
        {
            "customer_id": pd.array(rng.integers(0, 10, n), "Int64"),
            "shop_code": rng.choice(["a", "a:1", "", "ü", "unknown"], n),
            # Before the first event, at events, and a microsecond beside them.
            "event_timestamp": pd.to_datetime(
                BEGIN + rng.integers(-3, MOMENTS + 9, n) * DAY + rng.integers(-1, 2, n),
                unit="us",
                utc=True,
            ),
            "as_of": rng.integers(0, 5, n),
            "label": rng.random(n),
        }
    )
    rows.loc[rng.random(n) < 0.05, "customer_id"] = pd.NA
    return pd.concat([rows, rows.sample(20, random_state=1)], ignore_index=True)


def same_frames(stores, entities, **asked):
    frames = []
    for store in stores:
        table = store.get_historical_features(entity_df=entities.copy(), **asked).to_arrow()
        rows = table.select(sorted(table.column_names)).to_pylist()
        frames.append((table.schema, sorted(rows, key=repr)))
    (stock_schema, stock), (our_schema, ours) = frames
    assert our_schema == stock_schema
    assert len(ours) == len(entities)
    assert ours == stock
    return ours


REFS = [
    f"of_{what}:{name}" for what in ("customer", "shop", "both") for name in ("amount", "count")
]


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2, 3))]
)
@pytest.mark.parametrize("created", [True, False])
@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(days=3), timedelta(hours=23)])
def test_random_frames_are_the_stock_stores(tmp_path, seed, created, ttl):
    rng = np.random.default_rng([seed, created])
    both = list(stores(tmp_path, definitions(tmp_path, rng, ttl, created=created)))
    rows = same_frames(both, entity_rows(rng, 400), features=REFS, full_feature_names=True)
    found = [row["of_customer__count"] is not None for row in rows]
    assert 0.1 < np.mean(found) < 0.95  # both outcomes are common


def test_a_time_to_live_of_mixed_units_works_too(tmp_path):
    rng = np.random.default_rng(9)
    entities, asked = entity_rows(rng, 200), {"features": REFS[:1]}
    found = {}
    for hours in (24, 36, 48):
        folder = tmp_path / str(hours)
        folder.mkdir()
        objects = definitions(
            folder, np.random.default_rng(1), timedelta(hours=hours), created=True
        )
        *_, ours = stores(folder, objects)
        found[hours] = ours.get_historical_features(entity_df=entities.copy(), **asked).to_df()
    counts = [frame["amount"].notna().sum() for frame in found.values()]
    assert counts[0] <= counts[1] < counts[2]


def stores_with_aliases(tmp_path, **ours):
    """Both stores, entity rows, a service with an on-demand view, and one with a view renamed."""
    rng = np.random.default_rng(7)
    objects = definitions(tmp_path, rng, timedelta(days=5), created=True)
    _, _, of_customer, _, of_both, _, odfv = objects
    referrer = of_customer.with_name("referrer").with_join_key_map({"customer_id": "referrer_id"})
    service = FeatureService(name="plain", features=[of_customer[["count"]], odfv])
    aliased = FeatureService(name="aliased", features=[referrer[["name"]], of_both[["amount"]]])
    both = list(stores(tmp_path, [*objects, service, aliased], **ours))
    entities = entity_rows(rng, 300)
    entities["referrer_id"] = rng.integers(0, 9, len(entities))
    return both, entities, service, aliased


def test_on_demand_views_aliases_and_join_key_maps_are_the_stock_stores(tmp_path):
    both, entities, service, aliased = stores_with_aliases(tmp_path)
    rows = same_frames(both, entities, features=service)
    assert any(row["sum"] is not None for row in rows)
    same_frames(both, entities, features=service, full_feature_names=True)
    same_frames(both, entities, features=aliased, full_feature_names=True)


def test_rows_made_later_are_hidden_on_request_as_in_the_stock_store(tmp_path):
    rng = np.random.default_rng(3)
    both = list(stores(tmp_path, definitions(tmp_path, rng, timedelta(0), created=True)))
    asked = {"features": REFS, "full_feature_names": True, "filter_by_created_timestamp": True}
    same_frames(both, entity_rows(rng, 100), **asked)


def test_the_stock_store_in_the_same_process_keeps_its_own_join(tmp_path):
    rng = np.random.default_rng(5)
    stock, ours = stores(tmp_path, definitions(tmp_path, rng, timedelta(0), created=True))
    entities = entity_rows(rng, 50)
    for store, asof in ((ours, True), (stock, False), (ours, True)):
        job = store.get_historical_features(entity_df=entities.copy(), features=REFS[:2])
        assert ("ASOF" in job.table.compile()) is asof
