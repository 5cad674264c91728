"""A row that a view cannot be computed from: set aside before it lands, or moved out of the table."""

from dataclasses import replace
from datetime import timedelta

import ibis
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from core.errors import BatchRejectedError, UncomputableError
from feature_engine.ingest.exact_types import as_text
from feature_engine.ingest.landing import land
from feature_engine.ingest.quarantine import (
    quarantine,
    quarantine_entries,
    quarantine_table,
    quarantined,
    release,
)
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import write_views
from feature_engine.windows import Window, Windows
from feature_repo.published.config import view_address
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.event_shop import FIRST, MINUTE, ingested, shop  # noqa: F401  (fixtures)
from tests.support.feature_engine.installation import land_orders
from tests.support.feature_engine.shop import (
    DAY,
    HOUR,
    ORDERS,
    VIEW,
    order,
    order_table,
)

NOON = AS_OF - HOUR
HALF = 2**62
"""Two of these are more than int64 holds."""
WINDOWS = [
    Window("dollar_value", "sum", timedelta(days=30), name="spend"),
    Window("number_of_cds", "sum", name="cds"),
]


def ratio(orders):
    """An expression of a user's own, which divides decimals and casts a text."""
    text = orders.order_id.cast("string").replace("13", "thirteen")
    return orders.select(
        "customer_id",
        event_timestamp=orders.order_ts,
        created=orders.ingested_at,
        number=text.cast("int32"),
        price=orders.dollar_value.cast("decimal(9, 3)").cast("float64"),
    )


EXPRESSIONS = {
    "windows": Windows("customer_id", "order_ts", WINDOWS),
    "own": ratio,
    "count": Windows("customer_id", "order_ts", [Window(None, "count", name="orders")]),
}
TRIGGERS = {
    "windows": {
        "not a number": ([], [order(2, 1, NOON, float("nan"))], [2]),
        "infinity": ([], [order(2, 1, NOON, float("-inf"))], [2]),
        "beyond the decimals": ([], [order(2, 1, NOON, 1e13)], [2]),
        "two of a delivery": (
            [],
            [order(2, 1, NOON, cds=HALF), order(3, 1, NOON, cds=HALF)],
            [3],
        ),
        "one beside a stored row": (
            [order(2, 1, NOON, cds=HALF)],
            [order(3, 1, NOON, cds=HALF), order(4, 2, NOON, cds=HALF)],
            [3],
        ),
        "a correction": (
            [order(2, 1, NOON, cds=HALF), order(3, 1, NOON)],
            [order(3, 1, NOON, cds=HALF)],
            [3],
        ),
        "a correction that moves a row to its entity": (
            [order(2, 1, NOON, cds=HALF), order(3, 2, NOON, cds=HALF)],
            [order(3, 1, NOON, cds=HALF)],
            [3],
        ),
        "a correction that takes a row from its entity": (
            [
                order(2, 1, NOON, cds=HALF),
                order(3, 1, NOON, cds=-HALF),
                order(4, 1, NOON, cds=HALF),
            ],
            [order(3, 2, NOON, cds=-HALF)],
            [3],
        ),
    },
    "own": {
        "a cast of a text": ([], [order(13, 1, NOON)], [13]),
        "a decimal": ([], [order(2, 1, NOON, 1e8)], [2]),
    },
}
"""Rows that are stored, rows of a delivery, and the numbers of those that are set aside."""


@pytest.fixture
def settings(tmp_path, suite):
    suite()
    return new_settings(tmp_path / "home")


def with_view(name):
    return replace(ORDERS, views={VIEW: EXPRESSIONS[name]})


def deliver(settings, dataset, rows, hour=0):
    reader = order_table(*rows).to_reader()
    return land(settings, dataset, reader, AS_OF + hour * HOUR)


def landed(settings):
    rows = raw_table(settings, ORDERS).read(columns=ORDERS.schema.names)
    return by_number(rows.to_pylist())


def apart(case, row):
    """Return an order of numbers and customers that no other case has."""
    number = 1_000 * case + row["order_id"]
    return row | {"order_id": number, "customer_id": 10 * case + row["customer_id"]}


def by_number(rows):
    return {row["order_id"]: row for row in rows}


@pytest.mark.journey
@pytest.mark.parametrize("view", TRIGGERS)
def test_a_row_that_a_view_cannot_be_computed_from_is_set_aside_and_the_others_land(
    settings, view
):
    """One delivery has all cases, each of customers of its own."""
    dataset = with_view(view)
    stored = []
    rows = []
    good = []
    bad_numbers = []
    for case, (old, new, bad) in enumerate(TRIGGERS[view].values(), 1):
        stored += [apart(case, row) for row in old]
        rows += [apart(case, row) for row in new]
        others = [order(100, 1, NOON), order(101, 7, NOON)]
        good += [apart(case, row) for row in others]
        bad_numbers += [1_000 * case + number for number in bad]
    if stored:
        deliver(settings, dataset, stored)
    expected = by_number([*stored, *good])
    expected |= by_number(row for row in rows if row["order_id"] not in bad_numbers)
    for hour, count in ((1, len(bad_numbers)), (2, 0)):
        report = deliver(settings, dataset, [*stored, *rows, *good], hour)
        assert report.quarantined == count
        assert landed(settings) == expected
        entries = quarantined(settings, ORDERS)
        aside = [entry["row"]["order_id"] for entry in entries]
        assert sorted(aside) == bad_numbers
        for entry in entries:
            assert f"{VIEW} cannot be computed: " in entry["rules"]
        write_views(settings, dataset, raw_table(settings, ORDERS))
    assert release(settings, dataset, AS_OF + 3 * HOUR).released == 0
    # No view has the columns any more: the rows pass.
    dataset = with_view("count")
    deliver(settings, dataset, [*stored, *rows, *good], 4)
    assert landed(settings).keys() == {*expected, *bad_numbers}
    assert quarantined(settings, ORDERS) == []


@pytest.mark.journey
def test_many_such_rows_stop_a_delivery_and_change_nothing(settings):
    dataset = with_view("windows")
    good = [order(number, number, NOON) for number in range(100, 200)]
    bad = [order(number, number, NOON, 1e13) for number in range(20)]
    message = "nothing was changed: customer_features cannot be computed: .*order_id"
    with pytest.raises(BatchRejectedError, match=message):
        deliver(settings, dataset, [*good, *bad])
    tables = (raw_table(settings, ORDERS), quarantine_table(settings, ORDERS))
    assert [table.version for table in tables] == [-1, -1]
    entries = quarantine_entries([as_text(row) for row in bad], ["x"] * 20, NOON)
    quarantine(quarantine_table(settings, ORDERS), entries)
    report = deliver(settings, dataset, [*good, *bad])
    assert (report.inserted, report.quarantined) == (100, 0)


@pytest.mark.journey
def test_a_table_with_such_a_row_is_healed_by_the_command_of_the_message(shop):
    poison = order(2, 1, AS_OF - DAY, 1e13)
    land_orders(shop.settings, ORDERS, [poison], AS_OF + MINUTE)
    shop.has(FIRST, poison, order(3, 3, AS_OF, 3.0))
    with pytest.raises(UncomputableError) as error:
        shop.ingest(AS_OF + HOUR)
    message = str(error.value)
    for words in ("orders", VIEW, "10000000000000", "gyre ingest orders --full"):
        assert words in message
    # An event of the entity is not at fault; an event that is, is.
    shop.receives(AS_OF + HOUR + MINUTE, order(4, 1, AS_OF, 4.0))
    shop.receives(AS_OF + HOUR + 2 * MINUTE, order(5, 3, AS_OF, 5.0))
    assert shop.quarantine() == []
    assert shop.spent(3) is None or shop.spent(3) == 8.0
    report = shop.ingest(AS_OF + 2 * HOUR, full=True)
    assert report.quarantined == 1
    assert shop.orders() == [(1, 1, 5.0), (3, 3, 3.0), (4, 1, 4.0), (5, 3, 5.0)]
    assert ["10000000000000" in row["rules"] for row in shop.quarantine()] == [True]
    assert (shop.spent(1), shop.spent(3)) == (9.0, 8.0)
    assert shop.ingest(AS_OF + 3 * HOUR, full=True).quarantined == 0
    # The event that corrects it lands; quarantine keeps what the source still says, and it stays out.
    shop.receives(AS_OF + 3 * HOUR + MINUTE, poison | {"dollar_value": 2.0})
    shop.ingest(AS_OF + 4 * HOUR, full=True)
    assert shop.spent(1) == 11.0


@pytest.mark.journey
def test_what_an_event_says_of_a_row_in_quarantine_holds(shop):
    corrected = order(2, 2, AS_OF, 20.0)
    repeated = order(3, 3, AS_OF, 3.0)
    texts = [as_text(corrected), as_text(repeated)]
    entries = quarantine_entries(texts, ["a former rule"] * 2, AS_OF)
    quarantine(quarantine_table(shop.settings, ORDERS), entries)
    shop.receives(AS_OF + MINUTE, corrected | {"dollar_value": 2.0}, repeated)
    assert [row["row"] for row in shop.quarantine()] == texts[:1]
    # The source delivers the row that the event corrected, and it passes today's rules.
    shop.has(FIRST, corrected)
    for hour in (1, 2):
        assert shop.ingest(AS_OF + hour * HOUR, full=True).replaced == 0
        assert shop.orders() == [(1, 1, 5.0), (2, 2, 2.0), (3, 3, 3.0)]
    # It says another thing, and takes it back: that is news.
    for hour, amount in ((3, 30.0), (4, 20.0)):
        shop.has(FIRST, corrected | {"dollar_value": amount})
        shop.ingest(AS_OF + hour * HOUR, full=True)
        assert shop.spent(2) == amount
    assert shop.quarantine() == []


def test_columns_and_features_are_called_as_arguments_of_methods_are(settings):
    """`self` is one of Ibis's own: a delivery, quarantine, and views take it as any name."""
    names = ("self", "metrics", "cls")
    schema = ORDERS.schema
    for name in names:
        schema = schema.append(pa.field(name, pa.float64()))
    totals = [Window(name, "sum", name=name) for name in names]
    view = Windows(
        "customer_id", "order_ts", totals, derived={"by": ibis._["self"] * 2}
    )
    dataset = replace(ORDERS, schema=schema, views={VIEW: view})
    good = order(1, 1, NOON) | dict.fromkeys(names, 4.0)
    bad = order(2, 2, NOON) | dict.fromkeys(names, 1e13)
    for hour in (0, 1):
        rows = pa.Table.from_pylist([good, bad], schema)
        land(settings, dataset, rows.to_reader(), AS_OF + hour * HOUR)
    raw = raw_table(settings, dataset)
    write_views(settings, dataset, raw)
    (features,) = (
        DeltaTable(view_address(settings, VIEW)).to_pyarrow_table().to_pylist()
    )
    assert [features[name] for name in (*names, "by")] == [4.0, 4.0, 4.0, 8.0]
    (due,) = view.around(ibis.memtable(raw.read()), AS_OF).to_pyarrow().to_pylist()
    assert due["self"] == 4.0
    assert [row["row"]["self"] for row in quarantined(settings, dataset)] == [1e13]
