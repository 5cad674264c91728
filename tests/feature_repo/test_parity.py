"""Parity on real orders, and that it would notice a difference."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from feature_repo.datasets import load_dataset
from feature_repo.ingest import ingest
from feature_repo.parity import parity, same
from feature_repo.store import open_store
from stack.errors import DataError

ORDERS = load_dataset("orders")
SERVICE = "customer_churn_v1"


def compare(settings, *moments):
    told = []
    report = parity(settings, ORDERS, SERVICE, "customer_id", moments, told.append)
    assert len(told) == len(moments)
    return report


def test_online_is_offline_for_every_customer_and_a_planted_difference_is_named(applied, as_of):
    with pytest.raises(DataError, match="gyre ingest orders"):
        compare(applied, as_of)
    ingest(applied, "orders", as_of)
    report = compare(applied, as_of - timedelta(days=200), as_of)
    assert (report.entities, report.features, report.differences) == (23_570, 10, 0)
    assert report.values == 2 * 23_570 * 10
    # Feast holds to a view's time to live offline and not online: a difference that is not ours.
    store = open_store(applied, 5)
    view = store.get_feature_view("customer_features")
    view.ttl = timedelta(days=30)
    store.apply(view)
    report = compare(applied, as_of)
    assert report.differences > 1_000
    assert "offline None, online" in report.summary()


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
