"""Executors on other hosts write online values: those of DuckDB."""

from contextlib import closing

import pytest
from redis import Redis

from feature_engine.offline.views import write_views
from feature_engine.online.refresh import refresh_online
from feature_engine.online.values import OnlineValues
from tests.cluster.conftest import HOST, MARKS, SECRET, page_texts
from tests.conftest import (
    AS_OF,
    feast_apply,
    new_settings,
    redis_server,
    unused_port,
)
from tests.support.feature_engine.installation import land_orders
from tests.support.feature_engine.shop import DAY, ORDERS, order

pytestmark = [
    *MARKS,
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
]
PASSWORD = "known-to-executors-alone"
CUSTOMERS = 120_000
"""More than one transaction of each executor."""


@pytest.fixture
def settings(cluster, tmp_path):
    """Settings of an installation with its tables on S3."""
    port = unused_port()
    with redis_server(port, tmp_path, HOST):
        Redis(HOST, port).config_set("requirepass", PASSWORD)
        settings = new_settings(
            tmp_path / "home",
            data_url="s3://gyre/online",
            engine="spark",
            spark_master=cluster.address,
            redis_url=f"redis://:{PASSWORD}@{HOST}:{port}/0",
        )
        feast_apply(settings)
        yield settings


def land(settings, first_customer, count):
    """Land an order of each of some customers, and compute the view."""
    orders = []
    for n in range(count):
        time = AS_OF - (40 + n % 40) * DAY
        orders.append(order(n, first_customer + n, time, n % 1_000 / 4))
    raw = land_orders(settings, ORDERS, orders, AS_OF)
    write_views(settings, ORDERS, raw)
    return raw


def refreshed(settings, raw):
    """Return all hashes with online values after a refresh, which leaves no file."""
    with closing(OnlineValues(settings, ORDERS, raw)) as online:
        refresh_online(online, lambda: AS_OF)
    assert not [*settings.scratch.glob("**/*.parquet")]
    with (
        Redis.from_url(settings.redis_address) as redis,
        redis.pipeline(transaction=False) as pipe,
    ):
        names = [*redis.scan_iter("*gyre", count=10_000)]
        for name in names:
            pipe.hgetall(name)
        return dict(zip(names, pipe.execute(), strict=True))


def test_executors_write_the_online_values_of_duckdb_and_no_page_shows_a_secret(
    settings, spark, cluster
):
    database = settings.redis_url.removesuffix("0") + "1"
    changes = {"engine": "duckdb", "redis_url": database}
    plain_settings = settings.model_copy(update=changes)
    # Orders of the first thousand customers become those of new ones, who have no other.
    for first_customer, count in ((1, CUSTOMERS), (CUSTOMERS + 1, 1_000)):
        raw = land(plain_settings, first_customer, count)
        hashes = refreshed(settings, raw)
        assert len(hashes) == CUSTOMERS
        assert hashes == refreshed(plain_settings, raw)
    for text in page_texts(spark, cluster):
        for secret in (PASSWORD, "redis://", SECRET, "AWS_"):
            assert secret not in text
