"""Purchases: does a customer buy again within ten days of buying a product?"""

from datetime import timedelta
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from feast import Entity, FeatureService, Field, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64
from feature_repo.datasets.visits import product_visits

from gyre import Dataset, Label, Window, Windows, feature_view

TEN = ibis.interval(days=10)


def again_10d(purchases: ir.Table) -> ir.Table:
    """1 for a purchase whose customer buys anything within the ten days after it."""
    keys = {"event_timestamp": purchases.bought_at}
    bought = purchases.group_by("customer_id", "product_id", **keys).agg()
    following = bought.event_timestamp.lead().over(
        ibis.window(group_by="customer_id", order_by=["event_timestamp", "product_id"])
    )
    return bought.mutate(
        label=(following <= bought.event_timestamp + TEN).fill_null(False).cast("int64")
    )


PURCHASES = Dataset(
    name="purchases",
    schema=pa.schema(
        {
            "purchase_id": pa.int64(),
            "customer_id": pa.int64(),
            "product_id": pa.int64(),
            "bought_at": pa.timestamp("us", tz="UTC"),
            "price": pa.float64(),
        }
    ),
    key=("purchase_id",),
    event_time="bought_at",
    entity="customer_id",
    look_back=timedelta(days=2),
    silence=timedelta(hours=48),
    views={
        "customer_purchases": Windows(
            "customer_id",
            "bought_at",
            [
                Window(None, "count", timedelta(days=30), name="purchases_30d"),
                Window("price", "mean", name="mean_price"),
            ],
        )
    },
    labels={
        "again_10d": Label(
            again_10d, horizon=timedelta(days=10), lateness=timedelta(hours=1)
        )
    },
)
customer = Entity(
    name="customer", join_keys=["customer_id"], value_type=ValueType.INT64
)
customer_purchases = feature_view(PURCHASES, "customer_purchases", [customer])


@on_demand_feature_view(
    sources=[customer_purchases, product_visits],
    schema=[Field(name="price_of_a_minute", dtype=Float64)],
    mode="python",
)
def interest(inputs: dict[str, Any]) -> dict[str, Any]:
    """What the customer pays for each minute that others look at the product."""
    pairs = zip(inputs["mean_price"], inputs["minutes_30d"], strict=True)
    return {
        "price_of_a_minute": [p / m if p is not None and m else None for p, m in pairs]
    }


rebuy_v1 = FeatureService(
    name="rebuy_v1", features=[customer_purchases, product_visits, interest]
)
