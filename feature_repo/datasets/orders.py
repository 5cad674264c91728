"""Orders: what a customer bought and when, and what that says about coming back."""

from datetime import timedelta
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from feast import Entity, FeatureService, Field, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Int64
from ibis import _

from gyre import PROJECT, Dataset, Label, Window, Windows, feature_view

SCHEMA = {
    "order_id": pa.int64(),
    "customer_id": pa.int64(),
    "order_ts": pa.timestamp("us", tz="UTC"),
    "number_of_cds": pa.int64(),
    "dollar_value": pa.float64(),
}
D30 = timedelta(days=30)
D90 = timedelta(days=90)
D180 = timedelta(days=180)
TOTALS = [
    Window(None, "count", D30, name="total_orders_30d"),
    Window(None, "count", D90, name="total_orders_90d"),
    Window("dollar_value", "sum", D30, name="total_spend_30d"),
    Window("dollar_value", "sum", D90, name="total_spend_90d"),
    Window(None, "count", name="lifetime_orders"),
    Window("dollar_value", "sum", name="lifetime_value"),
    Window("dollar_value", "mean", name="avg_order_value"),
]
INSTANTS = [
    Window("order_ts", "max", name="last_order_us"),
    Window("order_ts", "min", name="first_order_us"),
]
LOYAL_ORDERS = 5
SEGMENT = ibis.cases(
    (_.lifetime_orders == 1, "new"),
    (_.lifetime_orders < LOYAL_ORDERS, "repeat"),
    else_="loyal",
)
FEATURES = Windows(
    entity="customer_id",
    time="order_ts",
    windows=[*TOTALS, *INSTANTS],
    derived={"customer_segment": SEGMENT},
)


def churned_90d(orders: ir.Table, snapshots: ir.Table) -> ir.Table:
    """1 for a customer with no order in (t, t + 90 d], of those with one in (t - 180 d, t]."""
    pairs = snapshots.cross_join(orders.select("customer_id", "order_ts"))
    snapshot = pairs.event_timestamp
    order = pairs.order_ts
    is_before = (order > snapshot - ibis.interval(days=D180.days)) & (order <= snapshot)
    is_after = (order > snapshot) & (order <= snapshot + ibis.interval(days=D90.days))
    customers = pairs.group_by("customer_id", "event_timestamp").agg(
        before=is_before.cast("int64").sum(),
        after=is_after.cast("int64").sum(),
    )
    members = customers.filter(_.before > 0)
    return members.select(
        "customer_id", "event_timestamp", label=(_.after == 0).cast("int64")
    )


ORDERS = Dataset(
    name="orders",
    schema=pa.schema(SCHEMA),
    key=("order_id",),
    event_time="order_ts",
    entity="customer_id",
    look_back=timedelta(days=7),
    silence=timedelta(hours=48),  # the days have no clock time
    views={"customer_features": FEATURES},
    labels={"churned_90d": Label(churned_90d, horizon=D90, lateness=timedelta(days=2))},
    shipped=PROJECT / "data" / "cdnow_orders.parquet",
)
OWNED: dict[str, Any] = {"owner": "shop", "tags": {"dataset": "orders"}}
customer = Entity(
    name="customer",
    join_keys=["customer_id"],
    value_type=ValueType.INT64,
    description="A customer of the shop",
    **OWNED,
)
customer_features_view = feature_view(
    ORDERS,
    "customer_features",
    [customer],
    description="Orders and spend over 30 days, 90 days and ever",
    **OWNED,
)
DAYS = ("days_since_last_order", "customer_tenure_days")
moment = RequestSource(name="moment", schema=[Field(name="as_of", dtype=Int64)])


@on_demand_feature_view(
    sources=[customer_features_view[["last_order_us", "first_order_us"]], moment],
    schema=[Field(name=name, dtype=Int64) for name in DAYS],
    mode="python",
    description="Whole days since the last and the first order",
    **OWNED,
)  # type: ignore[untyped-decorator]  # Feast ships no types for it
def customer_recency(inputs: dict[str, Any]) -> dict[str, Any]:
    """Whole days at `as_of` (microseconds UTC) since the customer's last and first order."""
    day = 86_400_000_000  # Feast stores this function by itself, without the module's names

    def days_since(times: list[int | None]) -> list[int | None]:
        pairs = zip(inputs["as_of"], times, strict=True)
        return [None if time is None else (now - time) // day for now, time in pairs]

    return {
        "days_since_last_order": days_since(inputs["last_order_us"]),
        "customer_tenure_days": days_since(inputs["first_order_us"]),
    }


SERVED_FEATURES = [*(window.name for window in TOTALS), "customer_segment"]
customer_churn_v1 = FeatureService(
    name="customer_churn_v1",
    features=[customer_features_view[SERVED_FEATURES], customer_recency],
    description="What the churn model is given",
    **OWNED,
)
