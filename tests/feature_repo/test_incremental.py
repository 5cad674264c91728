"""Features kept up to date are those of the full computation."""

import shutil

import ibis

from feature_repo.views import view_address, view_table, write_views
from tests.conftest import AS_OF, new_settings
from tests.feature_repo.conftest import land_orders
from tests.feature_repo.test_ingest import DAY, HOUR, ORDERS, VIEW, order


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
    rows = view_rows.drop("period").to_pyarrow()
    return rows.sort_by(
        [("customer_id", "ascending"), ("event_timestamp", "ascending")]
    )


def rebuilt(settings, raw):
    """The view computed in full beside it, from the same table."""
    elsewhere = settings.model_copy(update={"home": settings.home / "elsewhere"})
    write_views(elsewhere, ORDERS, raw)
    return rows_of(elsewhere)


def assert_written_as_rebuilt(settings, raw):
    write_views(settings, ORDERS, raw)
    assert rows_of(settings).equals(rebuilt(settings, raw))


def test_incremental_batches_give_the_rows_of_a_full_computation(tmp_path):
    """Corrections and late rows, several batches at once, a batch again, files put together."""
    settings = new_settings(tmp_path)
    batches = [
        [(1, 1, 300, 1.0), (2, 2, 1, 1.0), (3, 3, 60, 0.1), (7, 3, 300, 0.1)],
        [(4, 1, 0, 14.96), (5, 4, 29, 0.1)],
        # An order moves to another customer and back in time.
        [(2, 3, 90, 2.0), (6, 2, 27, 0.0)],
        [(1, 1, 28, 1.0), (8, 5, 30, 0.1)],
        [(2, 2, 1, 1.0), (9, 1, 400, 14.96)],
    ]
    for hour, batch in enumerate([*batches, batches[1]]):
        raw = land(settings, batch, hour)
        if hour == 3:
            raw.compact()
        if hour != 2:
            assert_written_as_rebuilt(settings, raw)


def test_a_view_is_computed_in_full_if_history_or_its_own_rows_are_missing(tmp_path):
    settings = new_settings(tmp_path)
    write_views(settings, ORDERS, land(settings, [(1, 1, 9, 1.0), (2, 2, 9, 1.0)], 0))
    raw = land(settings, [(1, 3, 5, 1.0)], 1)
    raw.purge()
    assert_written_as_rebuilt(settings, raw)
    shutil.rmtree(view_address(settings, VIEW))
    assert_written_as_rebuilt(settings, raw)
    raw.path.rename(raw.path.with_name("gone"))
    for hour in range(2):
        raw = land(settings, [(7 + hour, 7, 3, 1.0)], hour)
    write_views(settings, ORDERS, raw)
    assert set(rows_of(settings)["customer_id"].to_pylist()) == {7}
