"""What was learnt later counts: rows released from quarantine, backfills, versions, --source-wins.

On real tables and a real Redis; the rows of a topic come from a list (tests/kafka has a real broker).
"""

from contextlib import closing
from dataclasses import replace

import pyarrow as pa
import pytest

from core.errors import DataError
from feature_engine.events import broker
from feature_engine.ingest import consumer, pipeline
from feature_engine.ingest.quarantine import release
from feature_engine.ingest.topics import LEARNT_AT
from feature_repo.definition import TIMESTAMP, Topic
from operations.erase import erase_raw_rows
from operations.search import EntityKey, EntitySearch
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
from tests.support.feature_engine.shop import HOUR, ORDERS, order
from tests.support.feature_engine.suites import between

NEW = order(2, 2, LATER - HOUR, 10.0)
"""An order that the table does not have."""


@pytest.fixture
def largest(suite):
    """Sets the largest amount that the rules of single rows allow."""
    return lambda amount: suite(between("dollar_value", max_value=amount, mostly=0.01))


def new(amount, **more):
    return NEW | {"dollar_value": float(amount)} | more


def amount_of(shop, number=2):
    (amount,) = (row["dollar_value"] for row in shop.raw() if row["order_id"] == number)
    return amount


def receive(steps, *rows):
    """Let a new consumer, which knows the rules of now, process one event after the other."""
    with closing(EventShop(steps.shop.settings, steps.shop.file)) as shop:
        for row in rows:
            shop.receives(steps.now(), row)


def set_aside_and_corrected(steps, largest, amount):
    """Let the source's row break a rule of then, and let an event give its key another amount."""
    largest(8)
    steps.shop.has(FIRST, new(10))
    steps.shop.ingest(steps.now(), full=True)
    receive(steps, new(amount))
    largest(1_000)


def let_go(steps):
    return release(steps.shop.settings, ORDERS, steps.now()).released


def repeat(steps, row):
    """Let the source deliver a row beside the first one; return the amount that counts then."""
    steps.shop.has(FIRST, row)
    steps.shop.ingest(steps.now(), full=True)
    return amount_of(steps.shop)


def test_a_source_that_repeats_undoes_no_released_event(steps, largest):
    set_aside_and_corrected(steps, largest, 20)
    assert let_go(steps) == 1
    assert amount_of(steps.shop) == 20.0
    assert [repeat(steps, new(amount)) for amount in (10, 20, 30)] == [20, 20, 30]


def test_of_two_released_events_the_source_repeats_the_first(steps, largest):
    largest(8)
    receive(steps, new(20), new(30))
    largest(1_000)
    assert let_go(steps) == 1
    assert [repeat(steps, new(amount)) for amount in (20, 30, 20)] == [30, 30, 20]


@pytest.mark.parametrize("has_source", [True, False])
def test_an_event_that_waits_is_newer_than_a_released_one(
    steps, largest, monkeypatch, has_source
):
    monkeypatch.setattr(consumer, "has_source", lambda *_: has_source)
    largest(8)
    receive(steps, new(20))
    largest(1_000)
    with closing(EventShop(steps.shop.settings, steps.shop.file)) as shop:
        shop.sends(steps.now(), new(30))
        assert let_go(steps) == 1
        assert amount_of(shop) == 20.0
        shop.consumes()
        assert amount_of(shop) == 30.0


def test_of_released_rows_the_highest_version_counts(steps, largest, monkeypatch):
    dataset = by_version(monkeypatch)
    largest(8)
    receive(
        steps,
        new(50, number_of_cds=5),
        new(30, number_of_cds=3),
        new(9, number_of_cds=None),
    )
    largest(1_000)
    assert release(steps.shop.settings, dataset, steps.now()).released == 1
    assert amount_of(steps.shop) == 50.0


def by_version(monkeypatch):
    dataset = replace(ORDERS, version="number_of_cds")
    monkeypatch.setattr(pipeline, "load_dataset", lambda _: dataset)
    monkeypatch.setattr("tests.support.feature_engine.event_shop.ORDERS", dataset)
    return dataset


def test_a_source_that_repeats_a_version_undoes_no_event_of_this_version(
    steps, monkeypatch
):
    by_version(monkeypatch)
    steps.deliver(5)
    receive(steps, content(20))
    assert [steps.do("S5"), steps.do("S5")] == [20.0, 20.0]
    steps.deliver(5, source_wins=True)
    assert steps.amount == 5.0
    receive(steps, content(20))
    steps.shop.has(content(7) | {"number_of_cds": FIRST["number_of_cds"] + 1})
    steps.shop.ingest(steps.now(), full=True)
    assert steps.amount == 7.0


def test_a_source_wins_over_the_event_that_corrected_its_row(steps, largest):
    set_aside_and_corrected(steps, largest, 5)
    assert repeat(steps, new(10)) == 5.0
    steps.shop.ingest(steps.now(), source_wins=True)
    assert amount_of(steps.shop) == 10.0


def test_an_event_that_comes_while_the_source_is_read_wins_over_a_source_that_wins(
    steps, monkeypatch
):
    steps.do("E20")
    while_it_reads(steps, monkeypatch, content(99))
    steps.deliver(5, source_wins=True)
    monkeypatch.undo()
    assert steps.amount == 99.0
    assert [steps.do(word) for word in ("S5", "S6")] == [99.0, 6.0]


def while_it_reads(steps, monkeypatch, row):
    """Let an event come, and be processed, while an ingest reads."""
    read = pipeline.pull

    def pull(*arguments, **options):
        reader = read(*arguments, **options)

        def batches():
            yield from reader
            steps.shop.receives(steps.now(), row)

        return pa.RecordBatchReader.from_batches(reader.schema, batches())

    monkeypatch.setattr(pipeline, "pull", pull)


def of_topic(monkeypatch, *amounts, at=None):
    """Let an ingest read records of a topic with some amounts; of a backfill each has a time."""
    dataset = replace(ORDERS, topic=Topic("t"))
    monkeypatch.setattr(pipeline, "load_dataset", lambda _: dataset)
    schema = dataset.schema
    rows = [content(amount) for amount in amounts]
    if at:
        schema = schema.append(pa.field(LEARNT_AT, TIMESTAMP))
        rows = [row | {LEARNT_AT: at} for row in rows]
    records = pa.Table.from_pylist(rows, schema)
    monkeypatch.setattr(pipeline, "pull", lambda *_, **__: records.to_reader())


@pytest.mark.parametrize("how", [{"full": True}, {"topic_from": LATER}])
def test_an_event_that_comes_while_a_topic_is_read_is_newer(steps, monkeypatch, how):
    for module in (consumer, pipeline):
        monkeypatch.setattr(module, "has_source", lambda *_: False)
    with closing(EventShop(steps.shop.settings, steps.shop.file)) as shop:
        shop.receives(steps.now(), content(20))
        of_topic(monkeypatch, 20)
        steps.shop = shop
        while_it_reads(steps, monkeypatch, content(99))
        shop.ingest(steps.now(), **how)
        assert steps.amount == 99.0


@pytest.mark.parametrize(
    ("words", "record", "steps_after", "expected"),
    [
        ("E50", 2, "S5", [50.0, 50.0]),  # the consumer has landed it
        ("E50 S60", 2, "S60", [60.0, 60.0]),
        ("S60", 1, "S60", [60.0, 60.0]),  # the source has said another row since
        ("S60", 9, "S60 S50", [50.0, 50.0, 50.0]),  # the consumer has missed it
    ],
)
def test_a_record_of_a_backfill_counts_as_of_its_own_time(
    steps, monkeypatch, words, record, steps_after, expected
):
    steps.number = 1
    for word in words.split():
        steps.do(word)
    with monkeypatch.context() as changed:
        of_topic(changed, 50, at=LATER + record * MINUTE)
        steps.number = 10
        steps.shop.ingest(steps.now(), topic_from=LATER)
    amounts = [steps.amount]
    amounts += [steps.do(word) for word in steps_after.split()]
    assert amounts == expected


def test_of_a_forgotten_entity_goes_what_the_source_said_and_no_event(steps):
    steps.shop.has(content(10) | {"customer_id": 7})
    steps.shop.ingest(steps.now(), full=True)
    steps.do("E20")
    steps.do("E30")
    search = EntitySearch(steps.shop.settings, EntityKey("customer_id", 7), erase=True)
    assert erase_raw_rows(search) == 1
    (row,) = steps.shop.raw()
    assert '"customer_id": 7' not in row["superseded"]
    assert [steps.do(word) for word in ("S20", "S30", "S20")] == [30.0, 30.0, 20.0]


def test_no_row_is_released_by_a_clock_that_is_ahead(steps, largest, monkeypatch):
    largest(8)
    receive(steps, new(20))
    largest(1_000)
    with monkeypatch.context() as patch:
        patch.setattr(broker, "datetime", Ahead)
        with pytest.raises(DataError, match=r"clock is 1\d\d s ahead"):
            let_go(steps)
    assert [row["order_id"] for row in steps.shop.raw()] == [1]
    assert let_go(steps) == 1
