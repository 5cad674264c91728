"""Spend: what a customer's orders of one kind will come to, seen at the start of every month.

An entity is a customer and a kind of order: of a single CD or of several. It has a row at each of
the 13 month starts (00:00 UTC) from its last order on; the last one says that 12 months are over,
so that nobody counts as a member at the start of the next month because the month before was short.
A window at a month's start t holds whole calendar months: (t - 3 months, t], (t - 12 months, t].
"""

from datetime import timedelta
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from feast import Entity, FeatureService, ValueType

from feature_repo.datasets.orders import ORDERS, customer
from gyre import DECIMAL, Dataset, Label, feature_view

MONTHS = 12
NOTHING = ibis.literal(0).cast(DECIMAL)
KEY = ("customer_id", "basket")


def basket_spend(orders: ir.Table) -> ir.Table:
    """Rows of the view, one per customer, basket and month start, those that lie ahead included."""
    ordered = orders.order_ts.cast("timestamp")
    month = ordered.truncate("M")
    placed = orders.select(
        "customer_id",
        basket=_basket(orders),
        created=orders.ingested_at,
        spent=orders.dollar_value.cast(DECIMAL),
        # An order at the very start of a month counts for it.
        first=(ordered == month).ifelse(month, month + ibis.interval(months=1)),
    )
    orders_by_age = placed.mutate(age=ibis.array(list(range(MONTHS + 1))).unnest())
    counts = orders_by_age.age < MONTHS
    recent = orders_by_age.age < 3
    rows = orders_by_age.group_by(
        *KEY,
        event_timestamp=(
            orders_by_age["first"] + orders_by_age.age.as_interval("M")
        ).cast("timestamp('UTC')"),
    ).agg(
        created=orders_by_age.created.max(),
        orders_3m=recent.cast("int64").sum(),
        spend_3m=recent.ifelse(orders_by_age.spent, NOTHING).sum().cast("float64"),
        orders_12m=counts.cast("int64").sum(),
        spend_12m=counts.ifelse(orders_by_age.spent, NOTHING).sum().cast("float64"),
        months_since_last_order=orders_by_age.age.min().cast("int64"),
    )
    return rows.mutate(
        avg_order_value=rows.spend_12m / rows.orders_12m.nullif(0),
        order_kind=rows.basket,
    )


def spend_90d(orders: ir.Table, snapshots: ir.Table) -> ir.Table:
    """USD in (t, t + 90 d] of each customer and basket with an order in (t - 12 months, t]."""
    placed = orders.select(
        "customer_id", "order_ts", "dollar_value", basket=_basket(orders)
    )
    paired = snapshots.cross_join(placed)
    at = paired.event_timestamp
    known = (paired.order_ts > at - ibis.interval(months=MONTHS)) & (
        paired.order_ts <= at
    )
    ahead = (paired.order_ts > at) & (paired.order_ts <= at + ibis.interval(days=90))
    spent = ahead.ifelse(paired.dollar_value.cast(DECIMAL), NOTHING)
    counted = paired.group_by(*KEY, "event_timestamp").agg(
        known=known.cast("int64").sum(), label=spent.sum().cast("float64")
    )
    return counted.filter(counted.known > 0).drop("known")


def _basket(orders: ir.Table) -> Any:
    return (orders.number_of_cds == 1).ifelse("single", "several")


SPEND = Dataset(
    name="spend",
    schema=pa.schema(ORDERS.schema),
    key=ORDERS.key,
    event_time=ORDERS.event_time,
    entity=ORDERS.entity,
    look_back=ORDERS.look_back,
    silence=ORDERS.silence,
    views={"basket_spend": basket_spend},
    labels={
        "spend_90d": Label(
            spend_90d, horizon=timedelta(days=90), lateness=timedelta(days=2)
        ),
    },
    shipped=ORDERS.shipped,
)

basket = Entity(name="basket", join_keys=["basket"], value_type=ValueType.STRING)

basket_spend_view = feature_view(
    SPEND,
    "basket_spend",
    [customer, basket],
    ttl=timedelta(days=31),  # until the next month's start, and the view says no more
    description="Orders and spend of one kind over 3 and 12 calendar months",
)

next_quarter_spend_v1 = FeatureService(
    name="next_quarter_spend_v1", features=[basket_spend_view]
)
