"""A dataset whose label has rows with request data: what a customer's cart held."""

from dataclasses import replace
from typing import Any

import ibis
import ibis.expr.types as ir
from feast import FeatureService, Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float64, String, UnixTimestamp

from feature_repo.datasets.orders import FEATURES, ORDERS, churned_90d, customer
from gyre import feature_view


def typed_features(orders: ir.Table) -> ir.Table:
    """The shop's features, and one of each other type; the instant has a part of a second."""
    rows = FEATURES(orders)
    count = rows.lifetime_orders
    instant = rows.event_timestamp + ibis.interval(microseconds=750_000)
    return rows.mutate(
        boxes=count.cast("int32"),
        mean32=rows.avg_order_value.cast("float32"),
        loyal=(count == 2).ifelse(ibis.null("boolean"), count > 3),
        changed=instant.cast("timestamp('UTC', 6)"),
    )


def with_carts(orders: ir.Table, snapshots: ir.Table) -> ir.Table:
    """The label, and a cart of each row: its value no float, its coupon none for odd customers."""
    rows = churned_90d(orders, snapshots)
    cents = (rows.customer_id % 97 + 1).cast("decimal(18, 2)") / 4
    even = rows.customer_id % 2 == 0
    return rows.mutate(
        cart_value=cents.cast("decimal(18, 2)"),
        coupon=even.ifelse("ten", ""),
        gift=even,
        due=rows.event_timestamp + ibis.interval(microseconds=1_500_000),
        region=(rows.customer_id % 3 == 0).ifelse("north", ibis.null("string")),
    )


def with_nulls(orders: ir.Table, snapshots: ir.Table) -> ir.Table:
    rows = with_carts(orders, snapshots)
    return rows.mutate(coupon=ibis.literal("ten").nullif("ten"))


LABEL = ORDERS.labels["churned_90d"]
CARTS = replace(
    ORDERS,
    name="cart",
    views={"cart_customers": typed_features},
    labels={
        "churned_90d": LABEL,
        "with_carts": replace(LABEL, expression=with_carts),
        "with_nulls": replace(LABEL, expression=with_nulls),
    },
)
cart_customers = feature_view(CARTS, "cart_customers", [customer])
cart = RequestSource(
    name="cart",
    schema=[
        Field(name="cart_value", dtype=Float64),
        Field(name="coupon", dtype=String),
        Field(name="gift", dtype=Bool),
        Field(name="due", dtype=UnixTimestamp),
    ],
)


@on_demand_feature_view(
    sources=[cart_customers, cart],
    schema=[
        Field(name="above_average", dtype=Float64),
        Field(name="offer", dtype=String),
        Field(name="paid", dtype=Bool),
        Field(name="late", dtype=UnixTimestamp),
    ],
    mode="python",
)
def cart_offer(inputs: dict[str, Any]) -> dict[str, Any]:
    from datetime import timedelta  # noqa: PLC0415  (Feast stores the function alone)

    half = timedelta(microseconds=500_000)
    carts = zip(inputs["cart_value"], inputs["avg_order_value"], strict=True)
    offers = zip(inputs["coupon"], inputs["customer_segment"], strict=True)
    times = zip(inputs["due"], inputs["loyal"], strict=True)
    return {
        "paid": [not gift for gift in inputs["gift"]],
        "late": [due + half if loyal else None for due, loyal in times],
        "above_average": [
            None if mean is None else float(value - mean) for value, mean in carts
        ],
        "offer": [f"{coupon}:{segment}" for coupon, segment in offers],
    }


SERVED = ["lifetime_orders", "avg_order_value", "boxes", "mean32", "loyal", "changed"]
cart_v1 = FeatureService(name="cart_v1", features=[cart_customers[SERVED], cart_offer])
