"""Orders: what a customer bought and when, and what that says about coming back.

Feature rows are written at change points: when an order arrives and when it leaves each window.
A value at any time is then the newest row at or before it, online and offline alike, and falls to
0 by itself. What depends on the clock is computed on demand from stored instants.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

from feature_repo.definition import Dataset, Label
from stack.settings import PROJECT, load_settings

WINDOWS = (30, 90)
"""Days. A window of n days at t holds the orders in (t - n d, t]."""

LOYAL = 5
"""Lifetime orders from which a customer is loyal."""

MONEY = "decimal(18, 6)"
"""Sums of floats depend on the order of addition, and so on rows that come later: these do not."""

DAY_US = 86_400_000_000
EPOCH = ibis.timestamp("1970-01-01T00:00:00")
NOTHING = ibis.literal(0).cast(MONEY)
HORIZON, POPULATION = timedelta(days=90), timedelta(days=180)


def customer_features(orders: ir.Table) -> ir.Table:
    """Rows of the view, one per customer and change point, those that lie ahead included."""
    arrivals = orders.select(
        "customer_id",
        created=orders.ingested_at,
        spent=orders.dollar_value.cast(MONEY),
        order_us=_microseconds(orders.order_ts),
    )
    points = arrivals.mutate(days=ibis.array([0, *WINDOWS]).unnest())
    came, left = points.days == 0, {d: points.days == d for d in WINDOWS}
    points = points.mutate(
        at=points.order_us + points.days.cast("int64") * DAY_US,
        n=came.cast("int64"),
        amount=came.ifelse(points.spent, NOTHING),
        # Half open: an order exactly `d` days old has left the window.
        **{f"n_{d}": came.cast("int64") - left[d].cast("int64") for d in WINDOWS},
        **{
            f"amount_{d}": ibis.cases((came, points.spent), (left[d], -points.spent), else_=NOTHING)
            for d in WINDOWS
        },
    )
    # A window holds what came less what left it. A sliding frame costs a customer's orders squared.
    ever = ibis.range_window(group_by="customer_id", order_by="at", following=0)
    rows = points.select(
        "customer_id",
        event_timestamp=(EPOCH + points["at"].as_interval("us")).cast("timestamp('UTC')"),
        created=points.created.max().over(ever),
        **{f"total_orders_{d}d": points[f"n_{d}"].sum().over(ever) for d in WINDOWS},
        **{f"total_spend_{d}d": _dollars(points[f"amount_{d}"], ever) for d in WINDOWS},
        lifetime_orders=points.n.sum().over(ever),
        lifetime_value=_dollars(points.amount, ever),
        last_order_us=points.order_us.max().over(ever),
        first_order_us=points.order_us.min().over(ever),
        last_of_instant=points["at"] != points["at"].lead().over(ever),
    )
    # Rows of one instant see the same window, so any of them is the value at that instant.
    rows = rows.filter(rows.last_of_instant.fill_null(True)).drop("last_of_instant")  # noqa: FBT003
    return rows.mutate(
        avg_order_value=rows.lifetime_value / rows.lifetime_orders,
        customer_segment=ibis.cases(
            (rows.lifetime_orders == 1, "new"),
            (rows.lifetime_orders < LOYAL, "repeat"),
            else_="loyal",
        ),
    )


def churned_90d(orders: ir.Table, snapshots: ir.Table) -> ir.Table:
    """1 for a customer with no order in (t, t + 90 d], of those with one in (t - 180 d, t]."""
    paired = snapshots.cross_join(orders.select("customer_id", "order_ts"))
    age = paired.event_timestamp - ibis.interval(days=POPULATION.days)
    ahead = paired.event_timestamp + ibis.interval(days=HORIZON.days)
    before = (paired.order_ts > age) & (paired.order_ts <= paired.event_timestamp)
    after = (paired.order_ts > paired.event_timestamp) & (paired.order_ts <= ahead)
    counted = paired.group_by("customer_id", "event_timestamp").agg(
        before=before.cast("int64").sum(), after=after.cast("int64").sum()
    )
    members = counted.filter(counted.before > 0)
    return members.select(
        "customer_id", "event_timestamp", label=(members.after == 0).cast("int64")
    )


def _dollars(amount: Any, window: Any) -> Any:
    return amount.sum().over(window).cast("float64")


def _microseconds(time: Any) -> Any:
    """Timestamp → int64 microseconds since the epoch; Feast converts these 70 times faster."""
    return time.cast("timestamp").delta(EPOCH, unit="microsecond")


ORDERS = Dataset(
    name="orders",
    schema=pa.schema(
        {
            "order_id": pa.int64(),
            "customer_id": pa.int64(),
            "order_ts": pa.timestamp("us", tz="UTC"),
            "number_of_cds": pa.int64(),
            "dollar_value": pa.float64(),
        }
    ),
    key=("order_id",),
    event_time="order_ts",
    entity="customer_id",
    look_back=timedelta(days=7),
    silence=timedelta(hours=48),  # the days have no clock time
    views={"customer_features": customer_features},
    labels={"churned_90d": Label(churned_90d, horizon=HORIZON, lateness=timedelta(days=2))},
    shipped=PROJECT / "data" / "cdnow_orders.parquet",
)

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)

customer_features_source = FileSource(
    name="customer_features",
    path=str(load_settings().features / "customer_features.parquet"),
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
)

customer_features_view = FeatureView(
    name="customer_features",
    entities=[customer],
    ttl=timedelta(0),  # 0 after the last expiry stays true for ever
    schema=[
        *(Field(name=f"total_orders_{d}d", dtype=Int64) for d in WINDOWS),
        *(Field(name=f"total_spend_{d}d", dtype=Float64) for d in WINDOWS),
        Field(name="lifetime_orders", dtype=Int64),
        Field(name="lifetime_value", dtype=Float64),
        Field(name="avg_order_value", dtype=Float64),
        Field(name="customer_segment", dtype=String),
        Field(name="last_order_us", dtype=Int64),
        Field(name="first_order_us", dtype=Int64),
    ],
    source=customer_features_source,
)

moment = RequestSource(name="moment", schema=[Field(name="as_of", dtype=Int64)])


@on_demand_feature_view(
    sources=[customer_features_view, moment],
    schema=[
        Field(name="days_since_last_order", dtype=Int64),
        Field(name="customer_tenure_days", dtype=Int64),
    ],
    mode="python",
)  # type: ignore[untyped-decorator]  # Feast ships no types for it
def customer_recency(inputs: dict[str, Any]) -> dict[str, Any]:
    """Whole days at `as_of` (microseconds UTC) since the customer's last and first order."""
    day = 86_400_000_000  # Feast stores this function by itself, without the module's names

    def days(instants: list[int | None]) -> list[int | None]:
        pairs = zip(inputs["as_of"], instants, strict=True)
        return [None if then is None else (now - then) // day for now, then in pairs]

    return {
        "days_since_last_order": days(inputs["last_order_us"]),
        "customer_tenure_days": days(inputs["first_order_us"]),
    }


customer_churn_v1 = FeatureService(
    name="customer_churn_v1",
    features=[
        customer_features_view[
            [
                *(f"total_{what}_{d}d" for what in ("orders", "spend") for d in WINDOWS),
                "lifetime_orders",
                "lifetime_value",
                "avg_order_value",
                "customer_segment",
            ]
        ],
        customer_recency,
    ],
)
