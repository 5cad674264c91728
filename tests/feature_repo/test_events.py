"""Events beside a source: landed by key, online at once, each exactly once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from redis import Redis

from core.errors import DataError
from core.spec import load_spec
from feature_repo import consumer
from feature_repo.broker import Stream, event_schema
from feature_repo.consumer import EventConsumer
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.ingest import ingest
from feature_repo.quarantine import quarantine_table
from feature_repo.validation import Validation
from feature_repo.views import view_table
from monitoring.forget import forget
from monitoring.places import Key
from tests.conftest import AS_OF
from tests.feature_repo.conftest import Snapshot, online_reader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from core.settings import Settings

SPEC = load_spec("customer_churn_model")
ORDERS = load_dataset("orders")
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
LATER = AS_OF + HOUR


def order(number, customer, at, amount=10.0, cds=1):
    return {"order_id": number, "customer_id": customer, "order_ts": at,
            "number_of_cds": cds, "dollar_value": amount}  # fmt: skip


class Shop:
    """A source that a test rewrites, a stream of events, and an installation that reads both."""

    def __init__(self, settings: Settings, source: Path) -> None:
        self.source = source
        self.settings = settings.model_copy(update={"sources": {"orders": str(source)}})
        self.redis = Redis.from_url(settings.redis_address)
        self.stream = Stream(self.settings, "test")
        self.consumer = EventConsumer(self.settings, ORDERS, self.stream)
        self.stream.declare(self.consumer.schema)

    def has(self, *orders):
        pq.write_table(
            pa.Table.from_pylist(list(orders), schema=ORDERS.schema), self.source
        )

    def sends(self, received, *orders):
        """Put events on the stream as serving does, at a time of the test's own."""
        text = json.dumps(orders, default=lambda at: at.isoformat())
        self.puts(received, text)

    def puts(self, received, text):
        milliseconds = int(received.timestamp() * 1000)
        self.redis.xadd("gyre:events:orders", {"events": text}, id=f"{milliseconds}-1")

    def consumes(self):
        while self.consumer.step():
            pass

    def receives(self, received, *orders):
        self.sends(received, *orders)
        self.consumes()

    def waiting(self):
        return self.redis.xpending("gyre:events:orders", "gyre")["pending"]

    def set_aside(self):
        return quarantine_table(self.settings, ORDERS).read().to_pylist()

    def ingest(self, as_of, *, full=False):
        return ingest(self.settings, "orders", as_of, full=full)

    def online(self, customer, as_of=LATER):
        reader = online_reader(self.settings, SPEC.feature_service, SPEC.features)
        try:
            return reader.read([{"customer_id": customer}], as_of)[0]
        finally:
            reader.close()

    def spent(self, customer):
        found = self.online(customer)
        return found and found["lifetime_value"]

    def raw(self):
        rows = raw_table(self.settings, ORDERS).read().to_pylist()
        return sorted(
            (row["order_id"], row["customer_id"], row["dollar_value"]) for row in rows
        )


FIRST = order(1, 1, AS_OF - 10 * DAY, 5.0)


@pytest.fixture(scope="module")
def ingested(template, tmp_path_factory) -> Snapshot:
    """An installation that has ingested one order of customer 1, of 5 dollars."""
    settings = template.restore()
    source = tmp_path_factory.mktemp("source") / "orders.parquet"
    pq.write_table(pa.Table.from_pylist([FIRST], schema=ORDERS.schema), source)
    ingest(
        settings.model_copy(update={"sources": {"orders": str(source)}}),
        "orders",
        AS_OF,
    )
    return Snapshot(settings, "ingested")


@pytest.fixture
def shop(ingested, tmp_path) -> Iterator[Shop]:
    """Customer 1 has one order, of 5 dollars; it is ingested."""
    made = Shop(ingested.restore(), tmp_path / "orders.parquet")
    made.has(FIRST)
    yield made
    made.stream.close()
    made.redis.close()


def feature_rows(shop):
    files = view_table(shop.settings, "customer_features").files()
    rows = ibis.duckdb.connect().read_parquet(files).to_pyarrow()
    return rows.sort_by(
        [("customer_id", "ascending"), ("event_timestamp", "ascending")]
    )


def test_events_give_the_feature_rows_that_the_source_would_have_given(shop):
    more = [order(n, n % 3 + 1, AS_OF - n * DAY, n + 0.25) for n in range(2, 40)]
    shop.receives(LATER - MINUTE, *more[:20])
    shop.receives(LATER, *more[20:])
    at_once = [shop.online(customer) for customer in (1, 2, 3)]
    report = shop.ingest(LATER)
    assert (report.inserted, report.replaced) == (0, 0)
    landed = feature_rows(shop).drop_columns("created")
    assert [shop.online(customer) for customer in (1, 2, 3)] == at_once
    shutil.rmtree(shop.settings.data)
    shop.has(FIRST)
    shop.ingest(AS_OF)
    shop.has(FIRST, *more)
    shop.ingest(LATER, full=True)
    assert feature_rows(shop).drop_columns("created").equals(landed)


def test_of_one_key_the_newest_arrival_wins_in_whatever_batches_they_come(shop):
    changed, last = order(2, 1, AS_OF, 2.0), order(2, 1, AS_OF, 3.0)
    shop.sends(AS_OF + MINUTE, changed, changed)
    shop.sends(AS_OF + 2 * MINUTE, last)
    shop.consumes()
    assert shop.spent(1) == 8.0
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 3.0)]
    version = shop.ingest(LATER).table_version
    shop.receives(LATER + MINUTE, last)  # the same again
    assert shop.ingest(LATER + HOUR).table_version == version


def test_what_comes_again_later_than_its_correction_changes_nothing(shop):
    sent, corrected = order(2, 1, AS_OF, 2.0), order(2, 1, AS_OF, 3.0)
    shop.sends(AS_OF + MINUTE, sent)
    entries = shop.stream.read("orders")
    shop.receives(AS_OF + 2 * MINUTE, corrected)
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 3.0)]
    rows = shop.consumer._parse(entries[0])
    shop.consumer._land(rows)
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 3.0)]
    assert shop.spent(1) == 8.0


def test_an_event_corrects_a_row_of_the_source_until_the_source_has_news(shop):
    shop.receives(AS_OF + MINUTE, FIRST | {"dollar_value": 50.0})
    assert shop.spent(1) == 50.0
    assert shop.ingest(LATER).replaced == 0
    shop.receives(LATER + MINUTE, FIRST | {"dollar_value": 60.0})
    for hours in (1, 2):  # the source says 5 as before
        shop.ingest(LATER + hours * HOUR, full=True)
        assert shop.raw() == [(1, 1, 60.0)]
    for hours, said in ((3, 70.0), (4, 5.0)):
        shop.has(FIRST | {"dollar_value": said})
        shop.ingest(LATER + hours * HOUR, full=True)
        assert shop.raw() == [(1, 1, said)]
        assert shop.spent(1) == said


def test_a_row_that_the_source_delivers_after_the_event_is_the_newer_arrival(shop):
    shop.receives(AS_OF + MINUTE, order(2, 1, AS_OF, 2.0))
    shop.has(FIRST, order(2, 1, AS_OF, 20.0))
    assert shop.ingest(LATER).replaced == 1
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 20.0)]
    assert shop.spent(1) == 25.0


def test_a_row_of_an_ingest_that_began_before_the_event_does_not_replace_it(shop):
    shop.receives(LATER + MINUTE, order(2, 1, AS_OF, 2.0))
    shop.has(FIRST, order(2, 1, AS_OF, 20.0))
    assert shop.ingest(LATER).replaced == 0
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 2.0)]
    assert shop.spent(1) == 7.0


def test_a_correction_moves_an_order_to_another_customer_and_to_an_earlier_day(shop):
    sent = order(2, 1, AS_OF, 2.0)
    shop.receives(AS_OF + MINUTE, sent)
    assert shop.spent(1) == 7.0
    shop.receives(
        AS_OF + 2 * MINUTE, sent | {"customer_id": 9, "order_ts": AS_OF - 20 * DAY}
    )
    assert (shop.spent(1), shop.spent(9)) == (5.0, 2.0)
    shop.ingest(LATER)
    shop.receives(LATER + MINUTE, sent)
    assert (shop.spent(1), shop.spent(9)) == (7.0, None)


def test_an_event_that_breaks_a_rule_goes_to_quarantine_once(shop):
    bad = [order(2, 1, AS_OF, -1.0), order(3, 8, AS_OF, -1.0), order(1, 1, AS_OF, -7.0)]
    for minutes in (1, 2):
        shop.receives(AS_OF + minutes * MINUTE, *bad, order(4, 1, AS_OF, 2.0))
        assert len(shop.set_aside()) == 3
        assert shop.raw() == [(1, 1, 5.0), (4, 1, 2.0)]
        assert (shop.spent(1), shop.online(8)) == (7.0, None)
        assert shop.waiting() == 0
    assert (
        "expect_column_values_to_be_between(dollar_value)"
        in shop.set_aside()[0]["rules"]
    )


def test_bad_events_however_many_stop_nobody_elses_rows(shop):
    bad = [order(n, n, AS_OF, -1.0) for n in range(10, 60)]
    shop.receives(AS_OF + MINUTE, order(2, 1, AS_OF, 2.0), *bad)
    shop.has(FIRST, order(3, 3, AS_OF, 3.0))
    assert shop.ingest(LATER).inserted == 1
    assert len(shop.set_aside()) == 50
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 2.0), (3, 3, 3.0)]


def test_a_bad_correction_leaves_what_came_before_it(shop):
    shop.sends(AS_OF + MINUTE, order(3, 1, AS_OF, 3.0))
    shop.sends(AS_OF + 2 * MINUTE, order(3, 1, AS_OF, -3.0))
    shop.consumes()
    assert shop.raw() == [(1, 1, 5.0), (3, 1, 3.0)]
    assert shop.spent(1) == 8.0


def test_entries_that_are_no_events_go_to_quarantine_once_and_hold_up_nobody(shop):
    texts = [
        "{",
        "",
        '[{"order_id": 1}]',
        '{"order_id": 1}',
        '[{"no": "column"}]',
        "[[]]",
    ]
    for n, text in enumerate(texts):
        shop.sends(AS_OF + (2 * n + 1) * MINUTE, order(10 + n, 1, AS_OF, 2.0))
        shop.puts(AS_OF + (2 * n + 2) * MINUTE, text)
    shop.sends(AS_OF + 30 * MINUTE, order(3, 1, AS_OF, 3.0))
    shop.consumes()
    aside = shop.set_aside()
    assert {json.loads(row["row"])["events"] for row in aside} == {*texts}
    assert len(aside) == len(texts)
    assert all(
        row["rules"].startswith("cannot be processed: ValidationError") for row in aside
    )
    assert shop.raw() == [
        (1, 1, 5.0),
        (3, 1, 3.0),
        *((10 + n, 1, 2.0) for n in range(6)),
    ]
    assert shop.waiting() == 0


def test_an_entry_that_no_expression_can_take_is_set_aside_and_the_others_land(
    shop, monkeypatch
):
    """Beyond decimal(18, 6); the suite that is shipped would stop it before."""
    passed = Validation([], [], {}, {})
    monkeypatch.setattr(shop.consumer._rules, "validate", lambda *_: passed)
    for n in range(2, 9):
        shop.sends(AS_OF + n * MINUTE, order(n, n, AS_OF, 1e30 if n == 5 else 2.0))
    shop.consumes()
    assert [shop.spent(n) for n in range(2, 9)] == [2.0, 2.0, 2.0, None, 2.0, 2.0, 2.0]
    (row,) = shop.set_aside()
    assert json.loads(row["row"])["order_id"] == 5
    assert row["rules"].startswith("cannot be processed: ConversionException")
    assert len(shop.raw()) == 7
    assert shop.waiting() == 0


def test_an_expression_that_is_broken_sends_no_event_to_quarantine(shop, monkeypatch):
    """What is wrong with the code is tried again until somebody mends it."""
    shop.sends(AS_OF + MINUTE, order(2, 1, AS_OF, 2.0))
    with monkeypatch.context() as broken:
        broken.setitem(
            ORDERS.views, "customer_features", lambda orders: orders.select("no_column")
        )
        for _ in range(2):
            assert not shop.consumer.step()
    assert (shop.set_aside(), shop.waiting()) == ([], 1)
    shop.consumes()
    assert shop.spent(1) == 7.0


def test_a_batch_that_fails_again_and_again_is_set_aside_row_by_row(shop, monkeypatch):
    monkeypatch.setattr(consumer, "MAX_DELIVERIES", 2)
    shop.sends(AS_OF + MINUTE, order(2, 1, AS_OF, 2.0), order(3, 1, AS_OF, 2.0))
    with monkeypatch.context() as broken:
        broken.setitem(
            ORDERS.views, "customer_features", lambda orders: orders.select("no_column")
        )
        steps = [shop.consumer.step() for _ in range(3)]
    assert steps == [False, False, True]
    assert [json.loads(row["row"])["order_id"] for row in shop.set_aside()] == [2, 3]
    assert "no_column" in shop.set_aside()[0]["rules"]
    shop.receives(AS_OF + 2 * MINUTE, order(4, 1, AS_OF, 2.0))
    assert (shop.spent(1), shop.waiting()) == (7.0, 0)


def test_before_the_first_ingest_events_wait(applied, tmp_path):
    shop = Shop(applied, tmp_path / "orders.parquet")
    shop.receives(AS_OF + MINUTE, order(2, 1, AS_OF, 2.0))
    assert shop.raw() == []
    shop.has(FIRST)
    shop.ingest(AS_OF)
    shop.consumes()
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 2.0)]
    assert shop.spent(1) == 7.0


def test_events_land_while_redis_has_lost_its_features_and_ingest_brings_them_online(
    shop,
):
    shop.redis.flushall()
    shop.stream.declare(shop.consumer.schema)
    shop.receives(AS_OF + MINUTE, order(2, 1, AS_OF, 2.0))
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 2.0)]
    assert shop.redis.keys("gyre:online:*") == []
    shop.ingest(LATER)
    assert shop.spent(1) == 7.0


def test_entries_of_a_consumer_that_died_are_claimed(shop, monkeypatch):
    monkeypatch.setattr("feature_repo.broker.DEAD_AFTER", 0)
    other = Stream(shop.settings, "another host")
    shop.sends(AS_OF + MINUTE, order(2, 1, AS_OF, 2.0))
    assert len(other.read("orders")) == 1
    other.close()
    assert not shop.consumer.step()
    shop.stream.declare(shop.consumer.schema)
    shop.consumes()
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 2.0)]
    assert shop.waiting() == 0


def test_what_is_acknowledged_leaves_the_stream_and_nothing_else_does(shop):
    for n in range(5):
        shop.sends(AS_OF + (n + 1) * MINUTE, order(2 + n, 1, AS_OF, 2.0))
    entries = shop.stream.read("orders")
    shop.stream.acknowledge("orders", [entries[0], entries[2]])
    left = [key.decode() for key, _ in shop.redis.xrange("gyre:events:orders")]
    assert left == [entries[n].id for n in (1, 3, 4)]
    shop.consumes()
    assert shop.redis.xlen("gyre:events:orders") == 0
    assert len(shop.raw()) == 1 + 3


def test_a_batch_has_at_most_1000_rows_and_small_files_are_compacted(shop, monkeypatch):
    monkeypatch.setattr(consumer, "COMPACT_AFTER", 3)
    for part in range(3):
        numbers = range(100 + 600 * part, 700 + 600 * part)
        shop.sends(AS_OF + (part + 1) * MINUTE, *(order(n, n % 7, AS_OF, 1.0) for n in numbers
                                                  if n % 7))  # fmt: skip
    assert shop.consumer.step()
    assert len(shop.raw()) < 1_001
    shop.consumes()
    raw = raw_table(shop.settings, ORDERS)
    assert len(raw.files()) == 1
    assert len(shop.raw()) == 1 + sum(1 for n in range(100, 1900) if n % 7)
    spent = shop.spent(3)
    shop.ingest(LATER)
    assert shop.spent(3) == spent


def test_a_column_is_null_where_schema_and_suite_allow_it():
    kinds = [
        pa.field("coupon", pa.string()),
        pa.field("gift", pa.bool_(), nullable=False),
    ]
    dataset = replace(ORDERS, schema=pa.schema([*ORDERS.schema, *kinds]))
    model = event_schema(dataset, {"dollar_value"}).row_model()
    sent = order(1, 1, AS_OF.isoformat()) | {
        "coupon": None,
        "gift": True,
        "number_of_cds": None,
    }
    assert model.model_validate_json(json.dumps(sent)).coupon is None
    for name in ("gift", "dollar_value", "order_id", "customer_id", "order_ts"):
        with pytest.raises(ValidationError, match=name):
            model.model_validate_json(json.dumps(sent | {name: None}))
    with pytest.raises(ValidationError, match="coupon"):
        model.model_validate_json(
            json.dumps({k: v for k, v in sent.items() if k != "coupon"})
        )


def test_a_dataset_with_a_type_that_no_event_carries_says_so():
    dataset = replace(
        ORDERS, schema=ORDERS.schema.append(pa.field("tags", pa.list_(pa.string())))
    )
    with pytest.raises(DataError, match=r"orders.tags: expected .*, found list"):
        event_schema(dataset, set())


def test_where_nobody_else_has_rows_nobody_is_forgotten(shop):
    """Features would be computed from nothing."""
    with pytest.raises(DataError, match="nobody else has rows"):
        forget(shop.settings, Key("customer_id", 1))
    assert shop.spent(1) == 5.0
