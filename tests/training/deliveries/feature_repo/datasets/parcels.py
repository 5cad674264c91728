"""Parcels: how many minutes late each courier's deliveries were."""

from datetime import timedelta

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from feast import Entity, FeatureService, ValueType
from ibis import _

from gyre import Dataset, Label, Window, Windows, feature_view

D14 = timedelta(days=14)
D28 = timedelta(days=28)
FEATURES = Windows(
    "courier",
    "delivered_at",
    [
        Window(None, "count", D28, name="parcels_28d"),
        Window("minutes_late", "mean", D28, name="delay_28d"),
        Window("minutes_late", "mean", timedelta(days=7), name="delay_7d"),
        Window("region", "last", name="region"),
    ],
)


def next_14d(parcels: ir.Table, snapshots: ir.Table) -> ir.Table:
    """How the parcels in (t, t + 14 d] come on average: early, on_time or late."""
    paired = snapshots.cross_join(
        parcels.select("courier", "delivered_at", "minutes_late")
    )
    t = paired.event_timestamp
    at = paired.delivered_at
    ahead = paired.filter((at > t) & (at <= t + ibis.interval(days=14)))
    means = ahead.group_by("courier", "event_timestamp").agg(mean=_.minutes_late.mean())
    label = ibis.cases((_.mean < -2, "early"), (_.mean > 2, "late"), else_="on_time")
    return means.select("courier", "event_timestamp", label=label)


PARCELS = Dataset(
    name="parcels",
    schema=pa.schema(
        {
            "parcel": pa.int64(),
            "courier": pa.int64(),
            "delivered_at": pa.timestamp("us", tz="UTC"),
            "minutes_late": pa.float64(),
            "region": pa.string(),
        }
    ),
    key=("parcel",),
    event_time="delivered_at",
    entity="courier",
    look_back=timedelta(days=7),
    silence=timedelta(hours=48),
    views={"courier_features": FEATURES},
    labels={
        "next_14d": Label(
            next_14d, D14, timedelta(), unlabelled="no parcel in two weeks"
        )
    },
)
courier = Entity(name="courier", join_keys=["courier"], value_type=ValueType.INT64)
courier_features = feature_view(PARCELS, "courier_features", [courier])
delivery_v1 = FeatureService(name="delivery_v1", features=[courier_features])
