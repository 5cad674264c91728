"""The rule by which source and events meet (docs/events.md), on real tables and a real Redis."""

from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pytest

from core.errors import DataError
from feature_engine.events import broker
from feature_engine.ingest import pipeline
from tests.support.feature_engine.event_shop import (
    FIRST,
    LATER,
    MINUTE,
    Ahead,
    EventShop,
    content,
    ingested,  # noqa: F401  (a fixture)
    shop,  # noqa: F401  (a fixture)
    steps,  # noqa: F401  (a fixture)
)
from tests.support.feature_engine.shop import HOUR, order

CASES = {
    "S5 E20 E30 S20": [5.0, 20.0, 30.0, 30.0],
    "S5 E20 E30 S20 S30 S5": [5.0, 20.0, 30.0, 30.0, 30.0, 5.0],
    "S5 E20 S5 S5": [5.0, 20.0, 20.0, 20.0],
    "S5 E20 S20 S5": [5.0, 20.0, 20.0, 5.0],
    "S5 E20 S60 S60": [5.0, 20.0, 60.0, 60.0],
    "S5 E20 E5 S5 S20 S5": [5.0, 20.0, 5.0, 5.0, 5.0, 5.0],
    "S5 e20 e30 S20 C": [5.0, 5.0, 5.0, 20.0, 30.0],
    "S5 e20 S60 C S60": [5.0, 5.0, 60.0, 60.0, 60.0],
}
"""S: a delivery. E: an event. e: an event while the consumer stands. C: it starts."""


@pytest.mark.parametrize(("words", "amounts"), CASES.items())
def test_the_table_says_what_the_rule_says(steps, words, amounts):
    assert [steps.do(word) for word in words.split()] == amounts
    # The features online follow.
    assert steps.shop.values(1, steps.now())["lifetime_value"] == amounts[-1]
    # The same again changes nothing.
    version = steps.shop.raw()
    if words.split()[-1][0] == "S":
        steps.do(words.split()[-1])
        assert steps.shop.raw() == version


def test_of_several_events_in_one_request_the_last_counts(steps):
    contents = [content(amount) for amount in (75, 12.5, 57.5, 75)]
    now = steps.now()
    steps.shop.receives(now, *contents)
    assert steps.amount == 75.0
    # Once more, as when the consumer was killed before it acknowledged them.
    rows = steps.shop.raw()
    steps.shop.receives(now, *contents, number=2)
    assert steps.shop.raw() == rows
    assert [steps.do(word) for word in ["S5", "S57.5", "S12.5"]] == [75.0, 75.0, 12.5]


@pytest.mark.parametrize("is_first", [True, False])
def test_an_event_of_a_new_key_that_lands_late_is_put_in_its_place(
    template, ingested, tmp_path, is_first
):
    """The event was acknowledged before the ingest that brings its key, perhaps the first one."""
    snapshot = template if is_first else ingested
    new = order(2, 2, LATER - HOUR, 10.0)
    with closing(EventShop(snapshot.restore(), tmp_path / "orders.parquet")) as shop:

        def amount():
            return next(r["dollar_value"] for r in shop.raw() if r["order_id"] == 2)

        shop.sends(LATER, new | {"dollar_value": 20.0})
        shop.has(FIRST, new)
        for minutes in (1, 2):
            shop.ingest(LATER + minutes * MINUTE, full=True)
            assert amount() == 10.0
        shop.consumes()
        assert amount() == 10.0
        shop.receives(LATER + 3 * MINUTE, new | {"dollar_value": 30.0})
        assert amount() == 30.0


@pytest.mark.parametrize("is_new", [True, False])
def test_an_event_during_an_ingest_is_not_undone_by_the_next(
    steps, monkeypatch, is_new
):
    shop = steps.shop
    new = order(2, 2, LATER - HOUR, 10.0) if is_new else content(10.0)
    shop.has(FIRST, new) if is_new else shop.has(new)
    read = pipeline.pull

    def pull_while_an_event_comes(*arguments, **options):
        reader = read(*arguments, **options)

        def batches():
            yield from reader
            shop.receives(LATER + MINUTE, new | {"dollar_value": 99.0})

        return pa.RecordBatchReader.from_batches(reader.schema, batches())

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "pull", pull_while_an_event_comes)
        shop.ingest(LATER, full=True)
    key = new["order_id"]

    def amount():
        return next(r["dollar_value"] for r in shop.raw() if r["order_id"] == key)

    assert amount() == 99.0
    for hours in (1, 2):
        assert shop.ingest(LATER + hours * HOUR, full=True).replaced == 0
        assert amount() == 99.0


def test_a_dataset_whose_rows_no_event_has_changed_keeps_nothing(steps):
    for amount in (6.0, 7.0, 5.0):
        steps.deliver(amount)
        (row,) = steps.shop.raw()
        assert row["superseded"] is None
    steps.do("E20")
    steps.do("S20")
    steps.do("S60")
    (row,) = steps.shop.raw()
    assert row["superseded"] is None


def test_the_source_wins_on_request(steps):
    steps.do("E20")
    assert steps.do("S5") == 20.0
    report = steps.deliver(5.0, source_wins=True)
    assert (report.replaced, steps.amount) == (1, 5.0)
    assert steps.do("S5") == 5.0


def test_a_source_that_lags_too_long_is_counted(steps, monkeypatch):
    steps.do("E20")
    assert steps.deliver(5.0).behind == 0
    dataset = replace(pipeline.load_dataset("orders"), lag=timedelta(0))
    monkeypatch.setattr(pipeline, "load_dataset", lambda _: dataset)
    report = steps.deliver(5.0)
    assert report.behind == 1
    assert "--source-wins" in report.summary()


def test_a_higher_version_counts_whichever_way_it_came(ingested, tmp_path, monkeypatch):
    """The number of CDs stands for a column that grows with each change."""
    dataset = replace(pipeline.load_dataset("orders"), version="number_of_cds")
    monkeypatch.setattr(pipeline, "load_dataset", lambda _: dataset)
    monkeypatch.setattr("tests.support.feature_engine.event_shop.ORDERS", dataset)
    shop = EventShop(ingested.restore(), tmp_path / "orders.parquet")
    now = LATER
    try:
        for kind, version, amount, expected in (
            ("E", 3, 30.0, 30.0),
            ("S", 2, 20.0, 30.0),
            ("S", 4, 40.0, 40.0),
            ("E", 3, 33.0, 40.0),
            ("S", 4, 40.0, 40.0),
            ("E", 5, 50.0, 50.0),
        ):
            now += MINUTE
            row = FIRST | {"dollar_value": amount, "number_of_cds": version}
            if kind == "S":
                older = row | {"number_of_cds": version - 1, "dollar_value": 0.0}
                shop.has(row, older)  # of a delivery the higher one counts, too
                shop.ingest(now, full=True)
            else:
                shop.receives(now, row)
            (stored,) = shop.raw()
            assert stored["dollar_value"] == expected
            assert not stored["superseded"]
    finally:
        shop.close()


def test_a_clock_that_is_ahead_writes_nothing(steps, monkeypatch):
    before = steps.shop.raw()

    steps.send(20.0)
    with monkeypatch.context() as patch:
        patch.setattr(broker, "datetime", Ahead)
        with pytest.raises(DataError, match=r"clock is 1\d\d s ahead"):
            steps.deliver(60.0, began=None)
        with pytest.raises(DataError, match="ahead"):
            steps.shop.consumer.step()
        assert steps.shop.raw() == before
    assert steps.do("C") == 20.0
