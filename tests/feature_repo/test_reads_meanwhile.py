"""Who reads while features are written finds the old values or the new ones, nothing else."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.spec import load_spec
from core.timestamps import microseconds
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.refresh import refresh_online
from feature_repo.service import PublishedService
from feature_repo.store import open_store
from feature_repo.views import view_table, write_views
from tests.conftest import wait_until
from tests.feature_repo.conftest import online_reader
from tests.feature_repo.test_ingest import DAY, Shop, order

SPEC, ORDERS = load_spec("customer_churn_model"), load_dataset("orders")
CUSTOMERS = [*range(1, 41)]


@pytest.fixture
def shop(applied, tmp_path):
    return Shop(applied, tmp_path / "orders.parquet")


def orders_of(as_of, amount):
    """Two recent orders of each customer: what they spent is the same in every window."""
    return [
        order(2 * n + k, n, as_of - (1 + 2 * k) * DAY, amount)
        for n in CUSTOMERS
        for k in range(2)
    ]


def written(settings, as_of, amount):
    """Land the orders and compute their views, as ingest does."""
    raw = raw_table(settings, ORDERS)
    rows = [each | {"ingested_at": as_of} for each in orders_of(as_of, amount)]
    raw.merge(
        pa.Table.from_pylist(rows, schema=raw.schema), ORDERS.key, ORDERS.schema.names
    )
    write_views(settings, ORDERS, raw)


@contextmanager
def looped(*reads):
    """Call each of `reads` again and again in a thread of its own; yield what they raised, and how
    often each was called.
    """
    stop, failed, counts = threading.Event(), [], [0] * len(reads)

    def loop(n):
        try:
            while not stop.is_set():
                reads[n]()
                counts[n] += 1
        except BaseException as exc:  # noqa: BLE001
            failed.append(exc)

    threads = [threading.Thread(target=loop, args=(n,)) for n in range(len(reads))]
    for thread in threads:
        thread.start()
    try:
        yield failed, counts
        wait_until("enough reads", lambda: failed or min(counts) >= 5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def whole(spend_30d, spend_90d, lifetime):
    """One customer's values are all of one materialisation."""
    assert spend_30d == spend_90d == lifetime
    assert spend_30d in {20.0, 40.0}


def test_online_reads_meet_no_error_no_null_and_no_mixture(shop, as_of):
    shop.has(*orders_of(as_of, 10.0))
    shop.ingest(as_of)
    names = ["total_spend_30d", "total_spend_90d", "lifetime_value"]
    plain = open_store(shop.settings, 60)
    reader = online_reader(shop.settings, SPEC.feature_service, names)
    rows = [{"customer_id": customer} for customer in CUSTOMERS]

    def by_feast():
        found = plain.get_online_features(
            [f"customer_features:{name}" for name in names], rows
        )
        columns = found.to_dict()
        for values in zip(*(columns[name] for name in names), strict=True):
            whole(*values)

    def by_us():
        for found in reader.read([{"customer_id": each} for each in CUSTOMERS], as_of):
            whole(*found.values())

    def watermark():  # what the probe asks beside the reads
        assert reader.probe() is not None

    with looped(by_feast, by_us, watermark) as (failed, _):
        for turn in range(4):
            written(shop.settings, as_of, 10.0 * (1 + turn % 2))
            raw = raw_table(shop.settings, ORDERS)
            refresh_online(shop.settings, ORDERS, raw, clock=lambda: as_of)
            assert not failed, failed
    reader.close()


def test_historical_reads_meanwhile_find_every_row(shop, as_of):
    shop.has(*orders_of(as_of, 10.0))
    shop.ingest(as_of)
    service = PublishedService(shop.settings, SPEC.feature_service)
    frame = pd.DataFrame(
        {
            "customer_id": CUSTOMERS,
            "event_timestamp": as_of,
            "as_of": microseconds(as_of),
        }
    )

    def read():
        found = service.historical(frame).to_pylist()
        assert len(found) == len(CUSTOMERS)
        for each in found:
            whole(
                each["total_spend_30d"], each["total_spend_90d"], each["lifetime_value"]
            )

    with looped(read) as (failed, counts):
        for turn in range(4):
            written(shop.settings, as_of, 10.0 * (1 + turn % 2))
            begun = counts[0]  # a read may outlive one switch, not two
            wait_until("a read", lambda: failed or counts[0] > begun)  # noqa: B023
            assert not failed, failed


def test_files_that_were_listed_can_be_read_after_the_view_was_written_anew(
    shop, as_of
):
    shop.has(*orders_of(as_of, 10.0))
    shop.ingest(as_of)
    listed = view_table(shop.settings, "customer_features").files()
    written(shop.settings, as_of, 20.0)
    assert listed != view_table(shop.settings, "customer_features").files()
    assert all(pq.read_schema(path) for path in listed)
