"""Who reads while features are written finds the old values or the new ones, nothing else."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pandas as pd
import pyarrow as pa

from core.timestamps import microseconds
from feature_repo.refresh import refresh_online
from feature_repo.service import PublishedService
from feature_repo.store import open_store
from feature_repo.views import write_views
from tests.conftest import AS_OF, wait_until
from tests.feature_repo.conftest import land_orders, online_reader
from tests.feature_repo.test_ingest import DAY, ORDERS, SPEC, order, shop  # noqa: F401  (a fixture)

CUSTOMERS = range(1, 41)
NAMES = ("total_spend_30d", "total_spend_90d", "lifetime_value")


def orders_of(amount):
    """Two recent orders of each customer: what they spent is the same in every window."""
    return [
        order(2 * n + k, n, AS_OF - (1 + 2 * k) * DAY, amount)
        for n in CUSTOMERS
        for k in range(2)
    ]


@contextmanager
def repeated(*reads):
    """Call each of `reads` again and again in a thread of its own; raise what one raises.

    Yield what waits until each was called so many times more.
    """
    is_over = threading.Event()
    counts = Counter()

    def repeat(read):
        while not is_over.is_set():
            read()
            counts[read] += 1

    with ThreadPoolExecutor() as threads:
        readers = [threads.submit(repeat, read) for read in reads]

        def wait_for(count):
            goals = counts + Counter(dict.fromkeys(reads, count))

            def have_read():
                return counts >= goals or any(reader.done() for reader in readers)

            wait_until("reads", have_read)

        try:
            yield wait_for
        finally:
            is_over.set()
        for reader in readers:
            reader.result()


def assert_of_one_refresh(rows):
    """All values of a customer are of one refresh."""
    assert len(rows) == len(CUSTOMERS)
    for row in rows:
        spend = {row[name] for name in NAMES}
        assert spend in ({20.0}, {40.0})


def test_reads_during_a_refresh_return_one_version_without_errors_or_nulls(shop):
    shop.has(*orders_of(10.0))
    shop.ingest(AS_OF)
    store = open_store(shop.settings, 60)
    service = PublishedService(shop.settings, SPEC.feature_service)
    keys = [{"customer_id": customer} for customer in CUSTOMERS]
    moments = {"event_timestamp": AS_OF, "as_of": microseconds(AS_OF)}
    entities = pd.DataFrame(keys).assign(**moments)
    reader = online_reader(shop.settings, SPEC.feature_service, NAMES)

    def read_by_feast():
        features = [f"customer_features:{name}" for name in NAMES]
        columns = store.get_online_features(features, keys).to_dict()
        assert_of_one_refresh(pa.table(columns).to_pylist())

    def read_online():
        assert_of_one_refresh(reader.read(keys, AS_OF))
        assert reader.probe() is not None

    def read_historical():
        assert_of_one_refresh(service.historical(entities).to_pylist())

    reads = (read_by_feast, read_online, read_historical)
    with closing(reader), repeated(*reads) as wait_for:
        for amount in (20.0, 10.0):
            raw = land_orders(shop.settings, ORDERS, orders_of(amount), AS_OF)
            write_views(shop.settings, ORDERS, raw)
            refresh_online(shop.settings, ORDERS, raw, clock=lambda: AS_OF)
            wait_for(1)  # a read may outlive one switch, not two
        wait_for(3)
