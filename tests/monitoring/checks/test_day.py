"""A day of ingests: what freshness and skew say of it, and of hours without one."""

from dataclasses import fields

import pytest

from monitoring.checks.skew import judge_skew
from monitoring.checks.volume import freshness
from monitoring.run import MonitoringRun
from tests.conftest import AS_OF
from tests.support.feature_engine.installation import applied, template  # noqa: F401  (fixtures)
from tests.support.feature_engine.shop import DAY, HOUR, SPEC, order, shop  # noqa: F401
from tests.support.monitoring.online_customers import MINUTE, customers, serving  # noqa: F401

CUSTOMERS = range(1, 13)
PERIOD = 20
"""Minutes between two ingests."""
DAY_MINUTES = 24 * 60
MISSED = 30 * PERIOD
LONG = 45 * PERIOD
"""Minutes of the ingest that does not come, and of the one that takes longer than its period."""


def ingest_minutes():
    """When each ingest of the day starts and when it has ended, in minutes."""
    minutes = {start: start + 3 for start in range(0, DAY_MINUTES + 1, PERIOD)}
    del minutes[MISSED], minutes[LONG + PERIOD]
    minutes[LONG] = LONG + PERIOD + 4
    minutes[LONG + PERIOD + 4] = LONG + PERIOD + 7  # the next one waited for it
    return minutes


def alerts(settings, as_of):
    """What freshness says in a monitoring run as of a moment."""
    names = [field.name for field in fields(MonitoringRun)]
    values = {"settings": settings, "spec": SPEC, "as_of": as_of}
    run = MonitoringRun(**(dict.fromkeys(names) | values))
    return [result.words for result in freshness(run, None)]


def live(shop, serving, ingests, hours):
    """Let customers order, ingests run and serving answer; fail at the first alert.

    Args:
        shop: Its source has an order every four minutes.
        serving: It is asked every ten minutes, for all customers.
        ingests: The minutes at which each starts and at which its values are online.
        hours: How long.

    """
    orders = [order(n, n, AS_OF - n * DAY, 5.0 + n) for n in CUSTOMERS]
    for minute in range(0, hours * 60, 4):
        number = len(orders) + 1
        customer = 1 + number % len(CUSTOMERS)
        orders.append(order(number, customer, AS_OF + minute * MINUTE, 1.0 + minute))
    shop.has(*orders)
    shop.ingest(AS_OF - PERIOD * MINUTE)
    starts = {end: start for start, end in ingests.items()}
    for minute in range(hours * 60 + 1):
        moment = AS_OF + minute * MINUTE
        if minute % 10 == 1:
            serving.ask(moment, *customers(*CUSTOMERS))
        if minute in starts:
            shop.ingest(AS_OF + starts[minute] * MINUTE)
        assert alerts(shop.settings, moment) == []
        if minute and minute % (3 * 60) == 0:
            differing = serving.differing(moment)
            assert len(differing) >= 200
            results = [*judge_skew(SPEC.name, "1", differing)]
            assert {result.status for result in results} == {"ok"}, results


@pytest.mark.nightly
def test_a_day_of_ingests_raises_no_alert_though_one_is_missed_and_one_takes_long(
    shop, serving
):
    ingests = ingest_minutes()
    assert len(ingests) == 72
    live(shop, serving, ingests, 24)


@pytest.mark.nightly
def test_ingests_that_all_take_longer_than_their_period_raise_no_alert(shop, serving):
    period = PERIOD + 4
    ingests = {start: start + period for start in range(0, 3 * 60, period)}
    live(shop, serving, ingests, 3)


def test_two_hours_without_an_ingest_raise_an_alert_and_one_that_is_missed_does_not(
    shop,
):
    shop.has(order(1, 1, AS_OF - DAY, 5.0))
    shop.ingest(AS_OF)
    assert alerts(shop.settings, AS_OF + 2 * PERIOD * MINUTE + 3 * MINUTE) == []
    assert alerts(shop.settings, AS_OF + HOUR) == []
    assert alerts(shop.settings, AS_OF + 2 * HOUR) == [
        "orders: features are not complete since 2099-11-20 12:00 UTC: 2 h, at most 1 h are expected"
    ]
