"""Ingest end to end: a source that changes, real Delta tables, Feast and Redis."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redis import Redis

from core.errors import DataError
from core.spec import load_spec
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.ingest import ingest
from feature_repo.quarantine import quarantine_table
from tests.conftest import AS_OF, redis_server, unused_port, wait_until
from tests.feature_repo.conftest import online_reader

if TYPE_CHECKING:
    from pathlib import Path

    from core.settings import Settings

SPEC = load_spec("customer_churn_model")
ORDERS = load_dataset("orders")
VIEW = "customer_features"
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def order(number, customer, at, amount=10.0, cds=1):
    return {
        "order_id": number,
        "customer_id": customer,
        "order_ts": at,
        "number_of_cds": cds,
        "dollar_value": amount,
    }


class Shop:
    """A source file that a test rewrites, and an installation that reads it."""

    def __init__(self, settings: Settings, file: Path) -> None:
        self.file = file
        self.settings = settings.model_copy(update={"sources": {"orders": str(file)}})

    def has(self, *orders):
        pq.write_table(
            pa.Table.from_pylist(list(orders), schema=ORDERS.schema), self.file
        )

    def ingest(self, as_of, *, full=False):
        return ingest(self.settings, "orders", as_of, full=full)

    def online(self, as_of, *customers):
        reader = online_reader(self.settings, SPEC.feature_service, SPEC.features)
        try:
            return reader.read(
                [{"customer_id": customer} for customer in customers], as_of
            )
        finally:
            reader.close()

    def raw(self):
        return raw_table(self.settings, ORDERS).read().to_pylist()

    def aside(self):
        return quarantine_table(self.settings, ORDERS).read().to_pylist()


@pytest.fixture
def shop(applied, tmp_path):
    return Shop(applied, tmp_path / "orders.parquet")


def test_orders_become_rows_and_online_values_and_twice_is_the_same_as_once(
    shop, as_of
):
    shop.has(order(1, 1, as_of - 10 * DAY, 5.0), order(2, 1, as_of - 40 * DAY, 7.0))
    report = shop.ingest(as_of)
    assert (report.inserted, report.replaced, report.quarantined) == (2, 0, 0)
    assert shop.online(as_of, 1, 99) == [
        {
            "total_orders_30d": 1,
            "total_orders_90d": 2,
            "total_spend_30d": 5.0,
            "total_spend_90d": 12.0,
            "lifetime_orders": 2,
            "lifetime_value": 12.0,
            "avg_order_value": 6.0,
            "customer_segment": "repeat",
            "days_since_last_order": 10,
            "customer_tenure_days": 40,
        },
        None,
    ]
    repeated = shop.ingest(as_of)
    assert (repeated.inserted, repeated.table_version) == (0, report.table_version)


def test_a_value_falls_when_its_order_leaves_the_window_and_nothing_else_happens(
    shop, as_of
):
    shop.has(order(1, 1, as_of - 29 * DAY, 5.0))
    shop.ingest(as_of)
    assert shop.online(as_of, 1)[0]["total_orders_30d"] == 1
    shop.ingest(as_of + DAY)
    assert shop.online(as_of + DAY, 1)[0]["total_orders_30d"] == 0


@pytest.fixture(scope="module")
def corrected(template, tmp_path_factory):
    """What a second ingest makes of corrected orders: its report, table and values online."""
    shop = Shop(template.restore(), tmp_path_factory.mktemp("shop") / "orders.parquet")
    orders = [
        order(1, 1, AS_OF - DAY, 5.0),
        order(2, 2, AS_OF - DAY, 1.0),
        order(11, 11, AS_OF - 40 * DAY, 5.0),
        order(12, 11, AS_OF - 2 * DAY, 7.0),
        order(13, 12, AS_OF - 3 * DAY, 1.0),
        order(14, 13, AS_OF - DAY, 1.0),
        order(21, 21, AS_OF - 50 * DAY, 5.0),
        order(22, 21, AS_OF - 2 * DAY, 7.0),
    ]
    shop.has(*orders)
    shop.ingest(AS_OF)
    # The newest order of 11 was older, that of 12 was 11's, and 13 never ordered.
    corrections = {
        1: {"dollar_value": 50.0},
        12: {"order_ts": AS_OF - 35 * DAY},
        13: {"customer_id": 11},
        14: {"customer_id": 12},
        22: {"customer_id": 29},
    }
    shop.has(*(row | corrections.get(row["order_id"], {}) for row in orders))
    report = shop.ingest(AS_OF + DAY)
    customers = (1, 11, 12, 13, 21, 29)
    values = shop.online(AS_OF + DAY, *customers)
    return report, shop.raw(), dict(zip(customers, values, strict=True))


def test_a_correction_replaces_and_reaches_the_online_store(corrected, as_of):
    report, raw, online = corrected
    assert (report.inserted, report.replaced) == (0, 5)
    assert online[1]["total_spend_30d"] == 50.0
    arrivals = {row["order_id"]: row["ingested_at"] for row in raw}
    assert (arrivals[1], arrivals[2]) == (as_of + DAY, as_of - DAY)


def test_an_order_that_moves_leaves_nothing_of_it_online(corrected):
    _, _, online = corrected
    assert (online[11]["total_orders_30d"], online[11]["lifetime_value"]) == (1, 13.0)
    assert (online[12]["lifetime_orders"], online[12]["days_since_last_order"]) == (
        1,
        2,
    )
    assert online[13] is None


def test_an_order_taken_from_its_customer_lowers_what_is_online(corrected):
    _, _, online = corrected
    names = ("total_orders_30d", "total_orders_90d", "lifetime_orders")
    # Its newest row is now 20 days old: the first order leaving the window of 30 days.
    assert [online[21][name] for name in names] == [0, 1, 1]
    assert online[29]["lifetime_value"] == 7.0


def test_a_late_row_reaches_the_online_store(shop, as_of):
    first_row = order(1, 1, as_of - 20 * DAY)
    shop.has(first_row)
    shop.ingest(as_of)
    shop.has(first_row, order(2, 1, as_of - 25 * DAY), order(3, 2, as_of - 25 * DAY))
    shop.ingest(as_of + DAY)
    values = shop.online(as_of + DAY, 1, 2)
    assert [row["total_orders_30d"] for row in values] == [2, 1]


def test_rows_that_fail_alone_go_to_quarantine_once_and_stand_in_the_data_docs(
    shop, as_of
):
    good_rows = [order(number, number, as_of - DAY) for number in range(1, 40)]
    bad_rows = [
        order(50, 50, as_of - DAY, -1.0),
        order(51, None, as_of - DAY),
        order(52, 52, as_of + DAY),
        order(53, 53, as_of - DAY, float("inf")),
    ]
    shop.has(*good_rows, *bad_rows)
    report = shop.ingest(as_of)
    assert (report.inserted, report.quarantined) == (39, 4)
    page = (shop.settings.data_docs / "orders" / "index.html").read_text()
    assert "dollar_value" in page
    rules = {
        json.loads(entry["row"])["order_id"]: entry["rules"] for entry in shop.aside()
    }
    assert rules.keys() == {50, 51, 52, 53}
    assert "be_between(order_ts)" in rules[52]  # dated in the future
    shop.ingest(as_of + HOUR)
    assert len(shop.aside()) == 4


def test_an_empty_source_is_no_silence(shop, as_of):
    shop.has()
    with pytest.raises(DataError, match="no rows yet"):
        shop.ingest(as_of)


def test_an_emptied_online_store_is_noticed_and_filled_again(shop, as_of):
    shop.has(order(1, 1, as_of - DAY))
    shop.ingest(as_of)
    redis = Redis(port=shop.settings.redis_port)
    redis.flushall()
    shop.ingest(as_of + HOUR)
    (state,) = redis.keys("gyre:online:*:customer_features")
    moment = json.loads(redis.get(state))["time"]
    assert datetime.fromisoformat(moment) == as_of + HOUR
    assert shop.online(as_of, 1)[0]["lifetime_orders"] == 1


def test_a_redis_that_loses_everything_while_it_is_filled_is_filled_again(
    shop, as_of, tmp_path
):
    port = unused_port()
    standby_port = unused_port()
    shop.settings = shop.settings.model_copy(update={"redis_port": port})
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()

    def commands():
        return {client["cmd"] for client in redis.client_list()}

    with (
        redis_server(standby_port, tmp_path / "after"),
        ThreadPoolExecutor(1) as thread,
    ):
        with redis_server(port, tmp_path / "before"):
            shop.has(order(1, 1, as_of - DAY))
            shop.ingest(as_of)
            redis = Redis(port=port)
            redis.client_pause(300_000, all=False)  # holds writes, not reads
            shop.has(order(1, 1, as_of - DAY), order(2, 2, as_of))
            ingest_of_more = thread.submit(shop.ingest, as_of + DAY)
            wait_until("a held write", lambda: {"multi", "set", "exec"} & commands())
        Redis(port=standby_port).config_set(
            "port", port
        )  # there before the writer gives up
        assert ingest_of_more.result(600).inserted == 1
        values = shop.online(as_of + DAY, 1, 2)
    assert [row["lifetime_orders"] for row in values] == [1, 1]


def test_an_older_as_of_never_turns_the_online_store_back(shop, as_of):
    shop.has(order(1, 1, as_of - DAY), order(2, 1, as_of))
    shop.ingest(as_of)
    shop.ingest(as_of - 5 * DAY)
    assert shop.online(as_of, 1)[0]["lifetime_orders"] == 2


def test_an_expression_that_is_taken_back_leaves_nothing_of_it_online(
    shop, as_of, monkeypatch
):
    shop.has(order(1, 1, as_of - DAY, 5.0))
    shop.ingest(as_of)
    shipped = ORDERS.views[VIEW]
    with monkeypatch.context() as patch:
        patch.setitem(
            ORDERS.views, VIEW, lambda rows: shipped(rows).mutate(lifetime_value=9.0)
        )
        shop.ingest(as_of)
        assert shop.online(as_of, 1)[0]["lifetime_value"] == 9.0
    shop.ingest(as_of + DAY)
    assert shop.online(as_of + DAY, 1)[0]["lifetime_value"] == 5.0
