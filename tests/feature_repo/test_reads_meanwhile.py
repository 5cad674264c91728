"""Who reads while features are written finds the old values or the new ones, nothing else."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pandas as pd
import pyarrow as pa

from core.timestamps import microseconds
from feature_repo.features import raw_table
from feature_repo.refresh import refresh_online
from feature_repo.service import PublishedService
from feature_repo.store import open_store
from feature_repo.views import write_views
from tests.conftest import wait_until
from tests.feature_repo.conftest import online_reader
from tests.feature_repo.test_ingest import DAY, ORDERS, SPEC, order, shop  # noqa: F401  (a fixture)

CUSTOMERS = range(1, 41)
NAMES = ("total_spend_30d", "total_spend_90d", "lifetime_value")


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
    orders = [row | {"ingested_at": as_of} for row in orders_of(as_of, amount)]
    rows = pa.Table.from_pylist(orders, schema=raw.schema)
    raw.merge(rows, ORDERS.key, ORDERS.schema.names)
    write_views(settings, ORDERS, raw)


@contextmanager
def repeated(*reads):
    """Call each of `reads` again and again in a thread of its own; yield what they raised, and how
    often each was called.
    """
    is_over = threading.Event()
    failures = []
    counts = [0] * len(reads)

    def repeat(number):
        try:
            while not is_over.is_set():
                reads[number]()
                counts[number] += 1
        except BaseException as exc:  # noqa: BLE001
            failures.append(exc)

    threads = [threading.Thread(target=repeat, args=(n,)) for n in range(len(reads))]
    for thread in threads:
        thread.start()
    try:
        yield failures, counts
        wait_until("enough reads", lambda: failures or min(counts) >= 5)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def assert_of_one_refresh(rows):
    """All values of a customer are of one refresh."""
    assert len(rows) == len(CUSTOMERS)
    for row in rows:
        spend = {row[name] for name in NAMES}
        assert spend in ({20.0}, {40.0})


def test_reads_meet_no_error_no_null_and_no_mixture(shop, as_of):
    shop.has(*orders_of(as_of, 10.0))
    shop.ingest(as_of)
    raw = raw_table(shop.settings, ORDERS)
    store = open_store(shop.settings, 60)
    service = PublishedService(shop.settings, SPEC.feature_service)
    reader = online_reader(shop.settings, SPEC.feature_service, NAMES)
    keys = [{"customer_id": customer} for customer in CUSTOMERS]
    moments = {"event_timestamp": as_of, "as_of": microseconds(as_of)}
    entities = pd.DataFrame(keys).assign(**moments)

    def read_by_feast():
        features = [f"customer_features:{name}" for name in NAMES]
        columns = store.get_online_features(features, keys).to_dict()
        assert_of_one_refresh(pa.table(columns).to_pylist())

    def read_online():
        assert_of_one_refresh(reader.read(keys, as_of))
        assert reader.probe() is not None

    def read_historical():
        assert_of_one_refresh(service.historical(entities).to_pylist())

    reads = (read_by_feast, read_online, read_historical)
    with repeated(*reads) as (failures, counts):
        for amount in (20.0, 10.0):
            written(shop.settings, as_of, amount)
            refresh_online(shop.settings, ORDERS, raw, clock=lambda: as_of)
            begun = counts[2]  # a read may outlive one switch, not two
            wait_until("a read", lambda: failures or counts[2] > begun)  # noqa: B023
            assert not failures, failures
    reader.close()
