"""Visits of products' pages."""

from datetime import timedelta

import pyarrow as pa
from feast import Entity, ValueType

from gyre import Dataset, Window, Windows, feature_view

VISITS = Dataset(
    name="visits",
    schema=pa.schema(
        {
            "visit_id": pa.int64(),
            "product_id": pa.int64(),
            "seen_at": pa.timestamp("us", tz="UTC"),
            "minutes": pa.float64(),
        }
    ),
    key=("visit_id",),
    event_time="seen_at",
    entity="product_id",
    look_back=timedelta(days=2),
    silence=timedelta(hours=24),
    views={
        "product_visits": Windows(
            "product_id",
            "seen_at",
            [
                Window(None, "count", timedelta(days=7), name="visits_7d"),
                Window("minutes", "mean", timedelta(days=30), name="minutes_30d"),
            ],
        )
    },
    labels={},
)
product = Entity(name="product", join_keys=["product_id"], value_type=ValueType.INT64)
product_visits = feature_view(VISITS, "product_visits", [product])
