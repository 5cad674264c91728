"""Fixtures of an installation whose events go through a Kafka of the test."""

from contextlib import contextmanager, suppress

import pytest

from core.errors import BrokerUnavailableError
from feature_repo.online_store import redis_client
from stack.environment import process_environment
from tests.conftest import BIN, running, wait_until
from tests.support.feature_engine.installation import (
    applied,  # noqa: F401  (fixtures)
    template,  # noqa: F401
)
from tests.support.feature_engine.kafka_shop import FIRST, NOW, KafkaShop
from tests.support.feature_engine.shop import HOUR


class Company(KafkaShop):
    """A shop whose consumers are processes."""

    def __init__(self, settings, folder, kafka, variables):
        brokers = kafka.settings["bootstrap.servers"]
        super().__init__(settings, folder / "orders.parquet", brokers, kafka.settings)
        self.log = folder / "consumer.log"
        variables.setenv("GYRE_EVENTS_URL", self.settings.events_url)
        for name, value in self.settings.kafka.items():
            variables.setenv(f"GYRE_KAFKA__{name.upper()}", value)
        variables.setenv("GYRE_SOURCES__ORDERS", str(self.file))

    @contextmanager
    def consuming(self, command=(str(BIN / "gyre"), "consume")):
        """Run a consumer, until the block has ended or killed it."""
        environment = process_environment(self.settings)
        with running([*command], self.log, **environment) as process:
            yield process

    python = BIN / "python"

    def is_processed(self):
        with suppress(BrokerUnavailableError):  # it starts, or moves a group
            return self.lag().entries == 0
        return False


@pytest.fixture
def company(applied, tmp_path, monkeypatch):
    """Return a function that opens a shop on brokers; customer 1 has one order, of 5 dollars."""

    def open_company(kafka):
        shop = Company(applied, tmp_path, kafka, monkeypatch)
        shop.has(FIRST)
        shop.ingest(NOW - HOUR)
        with redis_client(shop.settings) as redis, shop.consumer("first"):
            wait_until("its schema", lambda: redis.hexists("gyre:events", "orders"))
        return shop

    return open_company
