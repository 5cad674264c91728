"""A value is too old at the same moment offline and online, to the microsecond."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, FeatureView, Field, FileSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

from core.timestamps import microseconds
from feature_repo.service import PublishedService
from feature_repo.store import open_store
from tests.feature_repo.conftest import online_reader

pytestmark = pytest.mark.filterwarnings(
    "ignore:On demand feature view is an experimental"
)
TICK, DAY = timedelta(microseconds=1), timedelta(days=1)
SEEN = datetime(2026, 3, 1, 9, 30, 0, 123_457, tzinfo=UTC)
ONE, TWO = {"customer_id": 1}, {"customer_id": 2}
NAMES = ("stock", "price", "stock_or_none")


@pytest.fixture
def snapshots(applied, tmp_path):
    """Of entity 1 a stock level that holds for a day and a price that holds for ever, online."""
    store = open_store(applied, 60)
    customer = store.get_entity("customer")

    def view(name, kind, dtype, ttl):
        file = str(tmp_path / f"{name}.parquet")
        at = pa.array([SEEN], pa.timestamp("us", "UTC"))
        pq.write_table(
            pa.table({"customer_id": [1], name: pa.array([7], kind), "at": at}), file
        )
        source = FileSource(name=f"{name}_source", path=file, timestamp_field="at")
        schema = [Field(name=name, dtype=dtype)]
        return FeatureView(
            name=f"of_{name}",
            entities=[customer],
            schema=schema,
            source=source,
            ttl=ttl,
        )

    stock = view("stock", pa.int64(), Int64, DAY)
    views = [stock, view("price", pa.float64(), Float64, timedelta(0))]

    def known(inputs):
        return {
            "stock_or_none": [-1 if each is None else each for each in inputs["stock"]]
        }

    schema = [Field(name="stock_or_none", dtype=Int64)]
    made = on_demand_feature_view(sources=[stock], schema=schema, mode="python")(known)
    store.apply(
        [*views, made, FeatureService(name="snapshots", features=[*views, made])]
    )
    names = [each.name for each in views]
    store.materialize(SEEN - DAY, SEEN + DAY, feature_views=names)
    return applied


def offline(settings, moment):
    frame = pd.DataFrame(
        {
            "customer_id": [1],
            "event_timestamp": [moment],
            "as_of": [microseconds(moment)],
        }
    )
    return (
        PublishedService(settings, "snapshots")
        .historical(frame)
        .select(NAMES)
        .to_pylist()
    )


@pytest.mark.parametrize(
    ("age", "valid"),
    [
        (timedelta(0), True),
        (DAY - TICK, True),
        (DAY, True),
        (DAY + TICK, False),
        (9 * DAY, False),
    ],
)
def test_a_value_holds_until_it_is_exactly_its_time_to_live_old(snapshots, age, valid):
    expected = {"stock": 7, "price": 7.0, "stock_or_none": 7} if valid else {
        "stock": None, "price": 7.0, "stock_or_none": -1,
    }  # fmt: skip
    assert offline(snapshots, SEEN + age) == [expected]
    reader = online_reader(snapshots, "snapshots", NAMES)
    assert reader.read([ONE], SEEN + age) == [expected]
    reader.close()


def test_plain_feast_reads_have_values_of_any_age(snapshots):
    store = open_store(snapshots, 5)
    names, rows = ["of_stock:stock", "of_price:price"], [{"customer_id": 1}]
    assert datetime.now(UTC) > SEEN + DAY
    found = store.get_online_features(names, rows).to_dict()
    assert found == {"customer_id": [1], "stock": [7], "price": [7.0]}


def test_an_entity_of_which_all_is_too_old_is_unknown(snapshots):
    reader = online_reader(snapshots, "snapshots", ["stock"])
    assert reader.read([ONE, TWO], SEEN + DAY) == [{"stock": 7}, None]
    assert reader.read([ONE, TWO], SEEN + DAY + TICK) == [None, None]
    reader.close()
