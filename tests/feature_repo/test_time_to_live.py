"""A value is too old at the same moment offline and online, to the microsecond."""

from __future__ import annotations

from contextlib import closing
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
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
SEEN = datetime(2026, 3, 1, 9, 30, 0, 123_457, tzinfo=UTC)
ONE = {"customer_id": 1}
TWO = {"customer_id": 2}
NAMES = ("stock", "price", "stock_or_none")


@pytest.fixture(scope="module")
def snapshots(template, tmp_path_factory):
    """Of entity 1 a stock level that holds for a day and a price that holds for ever, online."""
    settings = template.restore()
    store = open_store(settings, 60)
    folder = tmp_path_factory.mktemp("sources")
    views = []
    for name, dtype, ttl in (("stock", Int64, DAY), ("price", Float64, timedelta(0))):
        file = folder / f"{name}.parquet"
        at = pa.array([SEEN], pa.timestamp("us", "UTC"))
        value = 7 if name == "stock" else 7.0
        pq.write_table(pa.table({"customer_id": [1], name: [value], "at": at}), file)
        view = FeatureView(
            name=f"of_{name}",
            entities=[store.get_entity("customer")],
            schema=[Field(name=name, dtype=dtype)],
            source=FileSource(name=name, path=str(file), timestamp_field="at"),
            ttl=ttl,
        )
        views.append(view)

    def or_none(inputs):
        stocks = [-1 if stock is None else stock for stock in inputs["stock"]]
        return {"stock_or_none": stocks}

    schema = [Field(name="stock_or_none", dtype=Int64)]
    on_demand = on_demand_feature_view(sources=views[:1], schema=schema, mode="python")
    features = [*views, on_demand(or_none)]
    store.apply([*features, FeatureService(name="snapshots", features=features)])
    names = [view.name for view in views]
    store.materialize(SEEN - DAY, SEEN + DAY, feature_views=names)
    return settings


@pytest.mark.parametrize(
    ("age", "values"),
    [
        (timedelta(0), (7, 7.0, 7)),
        (DAY, (7, 7.0, 7)),
        (DAY + TICK, (None, 7.0, -1)),
        (9 * DAY, (None, 7.0, -1)),
    ],
)
def test_a_value_holds_until_it_is_exactly_its_time_to_live_old(snapshots, age, values):
    moment = SEEN + age
    expected = [dict(zip(NAMES, values, strict=True))]
    moments = {"event_timestamp": [moment], "as_of": [microseconds(moment)]}
    entities = pd.DataFrame({"customer_id": [1]} | moments)
    offline = PublishedService(snapshots, "snapshots").historical(entities)
    assert offline.select(NAMES).to_pylist() == expected
    with closing(online_reader(snapshots, "snapshots", NAMES)) as reader:
        assert reader.read([ONE], moment) == expected
    with closing(online_reader(snapshots, "snapshots", ["stock"])) as reader:
        stock = None if values[0] is None else {"stock": 7}
        assert reader.read([ONE, TWO], moment) == [stock, None]
