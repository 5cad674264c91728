"""An installation with Redis and published definitions, empty again for each test."""

import gc
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from redis import Redis

from core.settings import Settings
from core.tables.table import Table
from feature_engine.events.broker import broker, show_life
from feature_engine.ingest.consumer import EventConsumer
from feature_engine.ingest.source import pull
from feature_engine.offline.raw import raw_table
from feature_engine.online.entity_values import key_of
from feature_repo import rules
from feature_repo.datasets import load_dataset
from feature_repo.definition import Dataset
from feature_repo.published.feast_reader import OnlineFeatures
from feature_repo.published.store import open_store
from tests.conftest import AS_OF, feast_apply, new_settings, redis_server


class Snapshot:
    """What an installation and its Redis hold now, to be brought back before each test."""

    FOLDERS = ("feast", "data", "features", "reports", "serving")

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.folder = settings.home / name
        shutil.rmtree(self.folder, ignore_errors=True)  # of another module's fixture
        for folder in self.FOLDERS:
            (settings.home / folder).mkdir(exist_ok=True)
            shutil.copytree(settings.home / folder, self.folder / folder, symlinks=True)
        with Redis(port=settings.redis_port) as redis:
            self.online = {key: redis.dump(key) for key in redis.scan_iter()}

    def restore(self) -> Settings:
        for folder in self.FOLDERS:
            shutil.rmtree(self.settings.home / folder, ignore_errors=True)
        shutil.copytree(
            self.folder, self.settings.home, symlinks=True, dirs_exist_ok=True
        )
        with Redis(port=self.settings.redis_port) as redis:
            redis.flushall()
            for key, value in self.online.items():
                redis.restore(key, 0, value)
        return self.settings


@contextmanager
def published(home: Path, **more: Any) -> Iterator[Settings]:
    """Run Redis; the definitions are published."""
    settings = new_settings(home, **more)
    with redis_server(settings.redis_port, settings.home):
        with Redis(port=settings.redis_port) as redis:
            redis.config_set("appendonly", "no")  # nor a wait for a disk
        feast_apply(settings)
        yield settings


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    """An installation whose definitions have just been published."""
    with published(tmp_path_factory.mktemp("published")) as settings:
        yield Snapshot(settings, "pristine")


@pytest.fixture
def applied(template: Snapshot) -> Settings:
    return template.restore()


@pytest.fixture(scope="session")
def some_orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the shipped orders of a thousand customers."""
    settings = new_settings(tmp_path_factory.mktemp("orders"))
    orders = pull(settings, load_dataset("orders"), AS_OF).read_all()
    file = settings.home / "orders.parquet"
    pq.write_table(orders.filter(pc.field("customer_id") <= 1_000), file)
    return file


@pytest.fixture
def small(applied: Settings, some_orders: Path) -> Settings:
    """An installation whose shop has a thousand customers."""
    return applied.model_copy(update={"sources": {"orders": str(some_orders)}})


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that gives the orders a suite of some rules, or one of any text."""

    def write(*expectations: Any, text: str = "") -> None:
        text = text or json.dumps({"name": "orders", "expectations": expectations})
        (tmp_path / "orders.json").write_text(text)
        monkeypatch.setattr(rules, "EXPECTATIONS", tmp_path)

    return write


def land_orders(
    settings: Settings,
    dataset: Dataset,
    orders: Iterable[dict[str, Any]],
    arrival: datetime,
) -> Table:
    """Merge orders into the raw table as ingest does; of one key the last counts."""
    raw = raw_table(settings, dataset)
    rows = {
        key_of(order, dataset.key): order | {"ingested_at": arrival} for order in orders
    }
    new_rows = pa.Table.from_pylist([*rows.values()], raw.schema)
    raw.merge(new_rows, dataset.key, dataset.schema.names)
    return raw


class Events:
    """A stream of events, and its consumer in this process."""

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        self.redis = Redis.from_url(settings.redis_address)
        self.consumer = EventConsumer(settings, dataset, "test")
        self.stream = self.consumer.stream
        self.declare()

    def declare(self) -> None:
        """Say as a consumer does that it lives, and make the stream."""
        show_life(self.redis, [self.consumer.schema])
        self.stream.declare()

    def sends(self, received: datetime, *rows: dict[str, Any], number: int = 1) -> None:
        """Put events on the stream as serving does, at a time of the test's own.

        Args:
            received: Time of the entry.
            rows: Events of the entry.
            number: Number of the entry among those of its millisecond.

        """
        text = json.dumps(rows, default=lambda at: at.isoformat())
        name = f"gyre:events:{self.consumer.schema.dataset}"
        milliseconds = int(received.timestamp() * 1000)
        self.redis.xadd(name, {"events": text}, id=f"{milliseconds}-{number}")

    def consumes(self) -> None:
        while self.consumer.step():
            pass

    def receives(
        self, received: datetime, *rows: dict[str, Any], number: int = 1
    ) -> None:
        self.sends(received, *rows, number=number)
        self.consumes()

    def close(self) -> None:
        self.stream.close()
        self.redis.close()


def consume_all(settings: Settings, dataset: Dataset) -> None:
    """Consume what waits on the broker, up to its end."""
    with closing(Events(settings, dataset)) as events:
        lag = broker(settings).lag
        while events.consumer.step() or lag(events.consumer.schema).entries:
            events.stream.wait(0.2)


@contextmanager
def consuming(settings: Settings, dataset: Dataset) -> Iterator[Callable[..., None]]:
    """Yield what puts rows on the stream at a time of the test's own, and consumes them."""
    with closing(Events(settings, dataset)) as events:
        yield events.receives


def online_reader(
    settings: Settings, service: str, names: Iterable[str]
) -> OnlineFeatures:
    """Open a reader that waits for Redis, where serving's gives up after 50 ms."""
    return OnlineFeatures(settings, service, tuple(names), open_store(settings, 60))


@pytest.fixture
def spark_ends_here() -> Iterator[None]:
    """py4j leaves closing its sockets to the garbage collector, which may come in another test."""
    yield
    gc.collect()
