"""Views that are refreshed, and the same views built anew."""

import ibis

from feature_engine.offline.views import view_table, write_views
from tests.conftest import AS_OF
from tests.support.feature_engine.installation import land_orders
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, VIEW, order


def land(settings, batch, hour):
    """Merge rows (key, customer, days ago, amount); of one key the last stays."""
    orders = [
        order(key, customer, AS_OF - days * DAY, amount)
        for key, customer, days, amount in batch
    ]
    return land_orders(settings, ORDERS, orders, AS_OF + hour * HOUR)


def rows_of(settings):
    """All rows of a view, its files' own types included, in one order."""
    view_rows = ibis.duckdb.connect().read_parquet(view_table(settings, VIEW).files())
    rows = view_rows.drop("period").order_by("customer_id", "event_timestamp")
    return rows.to_pyarrow()


def rebuilt(settings, raw):
    """The view computed in full beside it, from the same table."""
    elsewhere = settings.model_copy(update={"home": settings.home / "elsewhere"})
    write_views(elsewhere, ORDERS, raw)
    return rows_of(elsewhere)
