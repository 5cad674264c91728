"""Events on file beside a source: landed by key, online at once, each exactly once."""

from __future__ import annotations

import fcntl
import json
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.datasets import load_dataset
from feature_repo.entities import EntityFeatures
from feature_repo.features import connect, view_path
from feature_repo.ingest import ingest, quarantine_table, raw_table
from feature_repo.online import OnlineFeatures
from stack.errors import BatchRejectedError
from stack.spec import load_spec
from tests.conftest import AS_OF

if TYPE_CHECKING:
    from pathlib import Path

    from stack.settings import Settings

SPEC = load_spec("customer_churn_model")
ORDERS = load_dataset("orders")
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
LATER = AS_OF + HOUR


def order(number, customer, at, amount=10.0, cds=1):
    return {"order_id": number, "customer_id": customer, "order_ts": at,
            "number_of_cds": cds, "dollar_value": amount}  # fmt: skip


class Shop:
    """A source that a test rewrites, files of events, and an installation that reads both."""

    def __init__(self, settings: Settings, source: Path) -> None:
        self.source = source
        self.settings = settings.model_copy(update={"sources": {"orders": str(source)}})
        self.settings.events.mkdir(parents=True)

    def file(self, worker=1):
        return self.settings.events / f"orders-{worker}-1.jsonl"

    def has(self, *orders):
        pq.write_table(pa.Table.from_pylist(list(orders), schema=ORDERS.schema), self.source)

    def sends(self, received, *orders, worker=1):
        """Put events on file as serving does."""
        with self.file(worker).open("a") as file:
            for row in orders:
                line = {"received": received, "row": row}
                file.write(json.dumps(line, default=lambda at: at.isoformat()) + "\n")

    def brings_online(self, moment, *orders):
        tables = (of(self.settings, ORDERS) for of in (raw_table, quarantine_table))
        online = EntityFeatures(self.settings, ORDERS, *tables)
        online.bring_online(orders, moment)
        online.close()

    def ingest(self, as_of, *, full=False):
        return ingest(self.settings, "orders", as_of, full=full)

    def online(self, customer, as_of=LATER):
        reader = OnlineFeatures(self.settings, SPEC.feature_service, tuple(SPEC.features))
        try:
            return reader.read([{"customer_id": customer}], as_of)[0]
        finally:
            reader.close()

    def spent(self, customer):
        found = self.online(customer)
        return found and found["lifetime_value"]

    def raw(self):
        rows = raw_table(self.settings, ORDERS).read().to_pylist()
        return sorted((row["order_id"], row["customer_id"], row["dollar_value"]) for row in rows)


FIRST = order(1, 1, AS_OF - 10 * DAY, 5.0)


@pytest.fixture
def shop(applied, tmp_path):
    """Customer 1 has one order, of 5 dollars; it is ingested."""
    made = Shop(applied, tmp_path / "orders.parquet")
    made.has(FIRST)
    made.ingest(AS_OF)
    return made


def feature_rows(shop):
    folder = view_path(shop.settings, "customer_features")
    rows = connect().read_parquet(f"{folder}/*/*.parquet").to_pyarrow()
    return rows.sort_by([("customer_id", "ascending"), ("event_timestamp", "ascending")])


def test_events_that_landed_give_the_feature_rows_that_the_source_would_have_given(shop):
    more = [order(n, n % 3 + 1, AS_OF - n * DAY, n + 0.25) for n in range(2, 40)]
    shop.sends(AS_OF + MINUTE, *more[:20])
    shop.sends(AS_OF + MINUTE, *more[20:], worker=2)
    shop.brings_online(AS_OF + 2 * MINUTE, *more)
    at_once = [shop.online(customer) for customer in (1, 2, 3)]
    report = shop.ingest(LATER)
    assert (report.inserted, report.replaced, report.malformed) == (38, 0, 0)
    assert not list(shop.settings.events.glob("*.jsonl"))
    landed = feature_rows(shop)
    assert [shop.online(customer) for customer in (1, 2, 3)] == at_once
    for folder in (shop.settings.data, shop.settings.features):
        shutil.rmtree(folder)
    shop.ingest(AS_OF)
    shop.has(FIRST, *more)
    shop.ingest(LATER, full=True)
    assert feature_rows(shop).equals(landed)


def test_of_one_key_the_newest_arrival_wins_whatever_file_it_is_in(shop):
    changed, last = order(2, 1, AS_OF, 2.0), order(2, 1, AS_OF, 3.0)
    shop.sends(AS_OF + 2 * MINUTE, last, worker=1)
    shop.sends(AS_OF + MINUTE, changed, changed, worker=2)
    shop.brings_online(AS_OF + 3 * MINUTE, changed)
    assert shop.spent(1) == 8.0
    assert shop.ingest(LATER).inserted == 1
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 3.0)]
    assert shop.ingest(LATER + HOUR).table_version == 1


def test_an_event_corrects_a_row_of_the_source_until_the_source_has_news(shop):
    shop.sends(AS_OF + MINUTE, FIRST | {"dollar_value": 50.0})
    shop.brings_online(AS_OF + MINUTE, FIRST)
    assert shop.spent(1) == 50.0
    assert shop.ingest(LATER).replaced == 1
    shop.sends(LATER + MINUTE, FIRST | {"dollar_value": 60.0})
    for hours in (1, 2):  # the source says 5 as before
        shop.ingest(LATER + hours * HOUR)
        assert shop.raw() == [(1, 1, 60.0)]
    for hours, said in ((3, 70.0), (4, 5.0)):
        shop.has(FIRST | {"dollar_value": said})
        shop.ingest(LATER + hours * HOUR)
        assert shop.raw() == [(1, 1, said)]
        assert shop.spent(1) == said


def test_a_row_that_the_source_delivers_after_the_event_is_the_newer_arrival(shop):
    shop.sends(AS_OF + MINUTE, order(2, 1, AS_OF, 2.0))
    shop.has(FIRST, order(2, 1, AS_OF, 20.0))
    assert shop.ingest(LATER).inserted == 1
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 20.0)]
    assert shop.spent(1) == 25.0


def test_a_correction_moves_an_order_to_another_customer_and_to_an_earlier_day(shop):
    sent = order(2, 1, AS_OF, 2.0)
    shop.sends(AS_OF + MINUTE, sent, sent | {"customer_id": 9, "order_ts": AS_OF - 20 * DAY})
    shop.brings_online(AS_OF + MINUTE, sent)
    assert (shop.spent(1), shop.spent(9)) == (5.0, 2.0)
    shop.ingest(LATER)
    shop.sends(LATER + MINUTE, sent)
    shop.brings_online(LATER + MINUTE, sent)
    assert (shop.spent(1), shop.spent(9)) == (7.0, None)


def test_a_file_goes_when_it_is_closed_and_landed_and_torn_lines_are_set_aside(shop):
    shop.sends(AS_OF + MINUTE, order(2, 1, AS_OF))
    with shop.file().open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b'{"received": ')
        file.flush()
        report = shop.ingest(LATER)
        assert (report.inserted, report.malformed) == (1, 0)
        assert shop.file().exists()
    report = shop.ingest(LATER + HOUR)
    assert (report.inserted, report.replaced, report.malformed) == (0, 0, 1)
    assert "1 lines of event files are no events" in report.summary()
    assert [path.suffix for path in shop.settings.events.glob("orders-*")] == [".malformed"]
    assert shop.ingest(LATER + 2 * HOUR).malformed == 0


def test_an_event_that_breaks_a_rule_is_taken_offline_by_its_quarantine(shop):
    bad = [order(2, 1, AS_OF, -1.0), order(3, 8, AS_OF, -1.0), order(1, 1, AS_OF, -7.0)]
    shop.sends(AS_OF + MINUTE, *bad)
    shop.brings_online(AS_OF + MINUTE, *bad)
    assert (shop.spent(1), shop.spent(8)) == (-8.0, -1.0)
    for hours in (1, 2):
        report = shop.ingest(AS_OF + hours * HOUR)
        assert report.quarantined == (3 if hours == 1 else 0)
        assert shop.raw() == [(1, 1, 5.0)]
        assert (shop.spent(1), shop.online(8)) == (5.0, None)
        shop.sends(LATER + MINUTE, bad[0])  # again


def test_what_is_not_due_stays_on_file_and_online(shop):
    shop.sends(LATER + MINUTE, order(2, 1, AS_OF, 2.0))  # received later
    shop.sends(AS_OF, order(3, 9, LATER + MINUTE, 3.0), worker=2)  # dated later
    shop.brings_online(LATER + MINUTE, order(2, 1, AS_OF), order(3, 9, LATER + MINUTE))
    for as_of in (LATER, AS_OF - 3 * DAY):
        assert shop.ingest(as_of).inserted == 0
        assert (shop.spent(1), shop.spent(9)) == (7.0, 3.0)
    assert shop.ingest(LATER + HOUR).inserted == 2
    assert not list(shop.settings.events.glob("*.jsonl"))


def test_a_batch_that_is_stopped_leaves_the_events_on_file(shop):
    shop.sends(AS_OF + MINUTE, order(2, 1, AS_OF, 2.0))
    shop.has(*(order(n, n, AS_OF, -1.0) for n in range(10, 60)))
    with pytest.raises(BatchRejectedError):
        shop.ingest(LATER)
    assert shop.raw() == [(1, 1, 5.0)]
    shop.has(FIRST)
    assert shop.ingest(LATER).inserted == 1
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 2.0)]


def test_bad_events_however_many_stop_nobody_elses_rows(shop):
    shop.sends(
        AS_OF + MINUTE, order(2, 1, AS_OF, 2.0), *(order(n, n, AS_OF, -1.0) for n in range(10, 60))
    )
    shop.has(FIRST, order(3, 3, AS_OF, 3.0))
    report = shop.ingest(LATER)
    assert (report.inserted, report.quarantined) == (2, 50)
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 2.0), (3, 3, 3.0)]
    assert not list(shop.settings.events.glob("*.jsonl"))


def test_events_of_an_ingest_that_died_half_way_land_once_and_come_online(shop):
    shop.sends(AS_OF + MINUTE, order(2, 1, AS_OF - 2 * DAY, 2.0), FIRST | {"dollar_value": 6.0})
    link = view_path(shop.settings, "customer_features")
    blocked = link.with_name(f".{link.name}")
    blocked.mkdir()  # where the pointer to the new features would be made
    with pytest.raises(OSError, match="features"):
        shop.ingest(LATER)
    blocked.rmdir()
    assert shop.raw() == [(1, 1, 6.0), (2, 1, 2.0)]
    assert shop.file().exists()
    report = shop.ingest(LATER)
    assert (report.inserted, report.replaced) == (0, 0)
    assert shop.spent(1) == 8.0
    assert not shop.file().exists()


def test_an_event_that_stood_back_for_a_row_that_broke_a_rule_lands_the_next_time(shop):
    sent = order(2, 1, AS_OF, 2.0)
    shop.has(FIRST, sent | {"dollar_value": -2.0})
    shop.sends(AS_OF + MINUTE, sent, order(3, 1, AS_OF, 3.0))
    shop.sends(AS_OF + 2 * MINUTE, order(3, 1, AS_OF, -3.0), worker=2)
    report = shop.ingest(LATER)
    assert (report.inserted, report.quarantined) == (0, 2)
    assert shop.spent(1) == 10.0  # what is on file counts
    assert shop.ingest(LATER + HOUR).inserted == 2
    assert shop.raw() == [(1, 1, 5.0), (2, 1, 2.0), (3, 1, 3.0)]
    assert not list(shop.settings.events.glob("*.jsonl"))


def test_a_value_that_no_expression_can_take_keeps_no_other_event_offline(shop):
    """Beyond decimal(18, 6); a rule stops it when it is due."""
    sent = [order(n, n, AS_OF, 1e30 if n == 5 else 2.0) for n in range(2, 9)]
    shop.sends(LATER + MINUTE, *sent)
    shop.brings_online(LATER + MINUTE, *sent)
    shop.ingest(LATER)
    assert [shop.spent(n) for n in range(2, 9)] == [2.0, 2.0, 2.0, None, 2.0, 2.0, 2.0]
    report = shop.ingest(LATER + HOUR)
    assert (report.inserted, report.quarantined) == (6, 1)
