"""Parity on real orders, and that it would notice a difference."""

from __future__ import annotations

import math
from datetime import timedelta

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from core.errors import DataError
from feature_repo.datasets import load_dataset
from feature_repo.ingest import ingest
from feature_repo.parity import parity, same
from feature_repo.store import open_store
from feature_repo.views import view_files

ORDERS = load_dataset("orders")
SERVICE = "customer_churn_v1"


def compare(settings, *moments, say=lambda _: None):
    told = []

    def tell(line):
        told.append(line)
        say(line)

    report = parity(settings, SERVICE, ["customer_id"], moments, tell)
    assert len(told) == len(moments)
    return report


def test_online_is_offline_for_every_customer_and_a_planted_difference_is_named(small, as_of):
    with pytest.raises(DataError, match="gyre ingest orders"):
        compare(small, as_of)
    ingest(small, "orders", as_of)
    # With a time to live, for which the store's clock must be the moment's.
    store = open_store(small, 60)
    view = store.get_feature_view("customer_features")
    view.ttl = timedelta(days=30)
    store.apply(view)

    def one_more(_):
        """Correct rows that are online already: no incremental materialisation sees it."""
        for file in view_files(small, "customer_features"):
            rows = pq.read_table(file)
            at = rows.schema.get_field_index("lifetime_orders")
            more = pc.add(rows["lifetime_orders"], 1)
            pq.write_table(rows.set_column(at, "lifetime_orders", more), file)

    first = as_of - timedelta(days=200)
    report = compare(small, first, as_of)
    assert (report.entities, report.features, report.differences) == (1_000, 10, 0)
    assert report.values == 2 * 1_000 * 10
    report = compare(small, as_of - timedelta(days=1), as_of, say=one_more)
    assert report.differences > 40
    assert "lifetime_orders: offline" in report.summary()


@pytest.mark.parametrize(
    ("offline", "online", "equal"),
    [
        (1.0, 1.0 + 1e-10, True),
        (1.0, 1.0 + 1e-8, False),
        (math.nan, math.nan, True),
        (math.nan, 0.0, False),
        (None, 0, False),
        (3, 3, True),
        (3, 4, False),
        ("new", "new", True),
        ("new", None, False),
    ],
)
def test_what_counts_as_the_same(offline, online, equal):
    assert same(offline, online) is equal
