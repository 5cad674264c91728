"""A dataset whose label has rows with request data: what a customer's cart held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ibis
import ibis.expr.types as ir
from feast import FeatureService, FeatureView, Field, FileSource, RequestSource
from feast.data_format import DeltaFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp

from core.settings import load_settings
from feature_repo.datasets.orders import FEATURES, ORDERS, churned_90d, customer
from feature_repo.views import view_address


def typed_features(orders: ir.Table) -> ir.Table:
    """The shop's features, and one of each other type; the instant has a part of a second."""
    rows = FEATURES(orders)
    at, orders = rows.event_timestamp, rows.lifetime_orders
    return rows.mutate(
        boxes=orders.cast("int32"),
        mean32=rows.avg_order_value.cast("float32"),
        loyal=(orders == 2).ifelse(ibis.null("boolean"), orders > 3),
        changed=(at + ibis.interval(microseconds=750_000)).cast("timestamp('UTC')"),
    )


def with_carts(orders: ir.Table, snapshots: ir.Table) -> ir.Table:
    """The label, and a cart of each row: its value no float, its coupon none for odd customers."""
    rows = churned_90d(orders, snapshots)
    cents = (rows.customer_id % 97 + 1).cast("decimal(18, 2)") / 4
    even = rows.customer_id % 2 == 0
    return rows.mutate(
        cart_value=cents.cast("decimal(18, 2)"),
        coupon=even.ifelse("ten", ""),
        items=(rows.customer_id % 5).cast("int32"),
        rate=(rows.customer_id % 7).cast("float64") / 10,
        gift=even,
        due=rows.event_timestamp + ibis.interval(microseconds=1_500_000),
        region=(rows.customer_id % 3 == 0).ifelse("north", ibis.null("string")),
    )


def without_coupon(orders: ir.Table, snapshots: ir.Table) -> ir.Table:
    return with_carts(orders, snapshots).drop("coupon")


def with_nulls(orders: ir.Table, snapshots: ir.Table) -> ir.Table:
    return with_carts(orders, snapshots).mutate(
        coupon=ibis.literal("ten").nullif("ten")
    )


LABEL = ORDERS.labels["churned_90d"]
CARTS = replace(
    ORDERS,
    name="cart",
    views={"cart_customers": typed_features},
    labels={
        "churned_90d": LABEL,
        "with_carts": replace(LABEL, expression=with_carts),
        "without_coupon": replace(LABEL, expression=without_coupon),
        "with_nulls": replace(LABEL, expression=with_nulls),
    },
)

cart_customers = FeatureView(
    name="cart_customers",
    entities=[customer],
    schema=[
        Field(name="lifetime_orders", dtype=Int64),
        Field(name="avg_order_value", dtype=Float64),
        Field(name="customer_segment", dtype=String),
        Field(name="boxes", dtype=Int32),
        Field(name="mean32", dtype=Float32),
        Field(name="loyal", dtype=Bool),
        Field(name="changed", dtype=UnixTimestamp),
    ],
    source=FileSource(
        name="cart_customers",
        path=view_address(load_settings(), "cart_customers"),
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    ),
)

cart = RequestSource(
    name="cart",
    schema=[
        Field(name="cart_value", dtype=Float64),
        Field(name="coupon", dtype=String),
        Field(name="items", dtype=Int64),
        Field(name="rate", dtype=Float32),
        Field(name="gift", dtype=Bool),
        Field(name="due", dtype=UnixTimestamp),
    ],
)


@on_demand_feature_view(
    sources=[cart_customers, cart],
    schema=[
        Field(name="above_average", dtype=Float64),
        Field(name="offer", dtype=String),
        Field(name="bulk", dtype=Int64),
        Field(name="paid", dtype=Bool),
        Field(name="late", dtype=UnixTimestamp),
        Field(name="eased", dtype=Float64),
    ],
    mode="python",
)
def cart_offer(inputs: dict[str, Any]) -> dict[str, Any]:
    carts = zip(inputs["cart_value"], inputs["avg_order_value"], strict=True)
    named = zip(inputs["coupon"], inputs["customer_segment"], strict=True)
    from datetime import timedelta  # noqa: PLC0415  (Feast stores the function alone)

    half = timedelta(microseconds=500_000)
    return {
        "paid": [not gift for gift in inputs["gift"]],
        "late": [
            due + half if loyal else None
            for due, loyal in zip(inputs["due"], inputs["loyal"], strict=True)
        ],
        "eased": [
            None if changed is None else rate * (changed.year % 7)
            for rate, changed in zip(inputs["rate"], inputs["changed"], strict=True)
        ],
        "above_average": [
            None if mean is None else float(value - mean) for value, mean in carts
        ],
        "offer": [f"{coupon}:{segment}" for coupon, segment in named],
        "bulk": [items * 12 for items in inputs["items"]],
    }


cart_v1 = FeatureService(
    name="cart_v1",
    features=[
        cart_customers[
            [
                "lifetime_orders",
                "avg_order_value",
                "boxes",
                "mean32",
                "loyal",
                "changed",
            ]
        ],
        cart_offer,
    ],
)
