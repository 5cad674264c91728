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

from core.settings import CLONE
from feature_repo.definition import Dataset, Label
from feature_repo.windows import Window, Windows, feature_view

SCHEMA = {
    "order_id": pa.int64(),
    "customer_id": pa.int64(),
    "order_ts": pa.timestamp("us", tz="UTC"),
    "number_of_cds": pa.int64(),
    "dollar_value": pa.float64(),
}
D30, D90, D180 = (timedelta(days=days) for days in (30, 90, 180))
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
LOYAL, count = 5, _.lifetime_orders
SEGMENT = ibis.cases((count == 1, "new"), (count < LOYAL, "repeat"), else_="loyal")
FEATURES = Windows("customer_id", "order_ts", [*TOTALS, *INSTANTS], {"customer_segment": SEGMENT})


def churned_90d(orders: ir.Table, snapshots: ir.Table) -> ir.Table:
    """1 for a customer with no order in (t, t + 90 d], of those with one in (t - 180 d, t]."""
    paired = snapshots.cross_join(orders.select("customer_id", "order_ts"))
    t, ordered = paired.event_timestamp, paired.order_ts
    before = (ordered > t - ibis.interval(days=D180.days)) & (ordered <= t)
    after = (ordered > t) & (ordered <= t + ibis.interval(days=D90.days))
    counts = {"before": before.cast("int64").sum(), "after": after.cast("int64").sum()}
    members = paired.group_by("customer_id", "event_timestamp").agg(**counts).filter(_.before > 0)
    return members.select("customer_id", "event_timestamp", label=(_.after == 0).cast("int64"))


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
    shipped=CLONE / "data" / "cdnow_orders.parquet",
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
    sources=[customer_features_view, moment],
    schema=[Field(name=name, dtype=Int64) for name in DAYS],
    mode="python",
    description="Whole days since the last and the first order",
    **OWNED,
)  # type: ignore[untyped-decorator]  # Feast ships no types for it
def customer_recency(inputs: dict[str, Any]) -> dict[str, Any]:
    """Whole days at `as_of` (microseconds UTC) since the customer's last and first order."""
    day = 86_400_000_000  # Feast stores this function by itself, without the module's names

    def days(instants: list[int | None]) -> list[int | None]:
        pairs = zip(inputs["as_of"], instants, strict=True)
        return [None if then is None else (now - then) // day for now, then in pairs]

    last, first = days(inputs["last_order_us"]), days(inputs["first_order_us"])
    return {"days_since_last_order": last, "customer_tenure_days": first}


SERVED = [*(each.name for each in TOTALS), "customer_segment"]
customer_churn_v1 = FeatureService(
    name="customer_churn_v1",
    features=[customer_features_view[SERVED], customer_recency],
    description="What the churn model is given",
    **OWNED,
)
