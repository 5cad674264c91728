"""A shop whose orders arrive as events."""

from contextlib import closing
from datetime import datetime

import pytest

from tests.conftest import AS_OF
from tests.support.feature_engine.installation import Events, Snapshot
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS, Shop, order

MINUTE = HOUR / 60
LATER = AS_OF + HOUR
FIRST = order(1, 1, AS_OF - 10 * DAY, 5.0)
SECOND = order(2, 1, AS_OF, 2.0)


class EventShop(Shop, Events):
    """A shop whose installation reads a stream of events too."""

    def __init__(self, settings, file):
        Shop.__init__(self, settings, file)
        Events.__init__(self, self.settings, ORDERS)

    def restarted_step(self):
        """Return what the first step of a consumer that has just started returns."""
        with closing(Events(self.settings, ORDERS)) as events:
            return events.consumer.step()

    def waiting(self):
        return self.redis.xpending("gyre:events:orders", "gyre")["pending"]

    def values(self, customer, at=LATER):
        return self.online(at, customer)[0]

    def spent(self, customer):
        values = self.values(customer)
        return values and values["lifetime_value"]

    def orders(self):
        """Number, customer and amount of each order that has landed."""
        return sorted(
            (row["order_id"], row["customer_id"], row["dollar_value"])
            for row in self.raw()
        )


@pytest.fixture(scope="module")
def ingested(template, tmp_path_factory):
    """An installation that has ingested one order of customer 1, of 5 dollars."""
    folder = tmp_path_factory.mktemp("source")
    shop = Shop(template.restore(), folder / "orders.parquet")
    shop.has(FIRST)
    shop.ingest(AS_OF)
    return Snapshot(shop.settings, "ingested")


@pytest.fixture
def shop(ingested, tmp_path):
    """Customer 1 has one order, of 5 dollars; it is ingested."""
    with closing(EventShop(ingested.restore(), tmp_path / "orders.parquet")) as shop:
        shop.has(FIRST)
        yield shop


class Ahead(datetime):
    """A clock that is two minutes ahead."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + 2 * MINUTE


def content(amount):
    return FIRST | {"dollar_value": float(amount)}


class Steps:
    """Deliveries and events of one order."""

    def __init__(self, shop):
        self.shop = shop
        self.number = 0

    def deliver(self, amount, **more):
        self.shop.has(content(amount))
        return self.shop.ingest(self.now(), **({"full": True} | more))

    def now(self):
        """Return the time, which goes on by a minute with each step."""
        self.number += 1
        return LATER + self.number * MINUTE

    def send(self, amount):
        self.shop.sends(self.now(), content(amount))

    def do(self, word):
        kind, amount = word[0], float(word[1:] or 0)
        if kind == "S":
            self.deliver(amount)
        elif kind in "Ee":
            self.send(amount)
        if kind in "EC":
            self.shop.consumes()
        return self.amount

    @property
    def amount(self):
        (row,) = self.shop.raw()
        return row["dollar_value"]


@pytest.fixture
def steps(shop):
    return Steps(shop)
