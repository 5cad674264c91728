"""An installation with Redis and published definitions, empty again for each test."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from core.settings import PROJECT
from feature_repo.broker import Stream
from feature_repo.consumer import EventConsumer
from stack.environment import child_environment
from tests.conftest import AS_OF, BIN, feast_apply, new_settings, redis_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from core.settings import Settings
    from feature_repo.definition import Dataset


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    settings = new_settings(tmp_path_factory.mktemp("published"))
    with redis_server(settings.redis_port, settings.home):
        feast_apply(settings)
        shutil.copytree(settings.home / "feast", settings.home / "pristine")
        yield settings


@pytest.fixture
def applied(template: Settings) -> Settings:
    return emptied(template)


def emptied(template: Settings) -> Settings:
    """As it was when its definitions had just been published."""
    for folder in ("feast", "data", "features", "reports", "serving"):
        shutil.rmtree(template.home / folder, ignore_errors=True)
    shutil.copytree(template.home / "pristine", template.home / "feast")
    flush = [str(BIN / "redis-cli"), "-p", str(template.redis_port), "flushall"]
    subprocess.run(flush, check=True, capture_output=True)
    return template


@contextmanager
def consuming(settings: Settings, dataset: Dataset) -> Iterator[Callable[..., None]]:
    """Yield what puts rows on the stream at a time of the test's own, and consumes them."""
    redis, stream = Redis.from_url(settings.redis_address), Stream(settings, "test")
    consumer = EventConsumer(settings, dataset, stream)
    stream.declare(consumer.schema)

    def send(moment: datetime, *rows: dict[str, Any]) -> None:
        text = json.dumps(rows, default=lambda at: at.isoformat())
        name = f"gyre:events:{dataset.name}"
        redis.xadd(name, {"events": text}, id=f"{int(moment.timestamp() * 1000)}-1")
        while consumer.step():
            pass

    yield send
    stream.close()
    redis.close()


class ProjectCopy:
    """The project's code in a folder of its own, whose files a test edits as a user does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rooms = (
            "cli",
            "feature_repo",
            "mlflow_server",
            "models",
            "monitoring",
            "serving",
            "core",
            "stack",
            "training",
            "data",
        )
        for room in rooms:
            shutil.copytree(PROJECT / room, folder / room)

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new, 1))

    def gyre(self, settings: Settings, *arguments: str, **sources: Path) -> str:
        """What a command says; fails as `subprocess.run` with `check` does."""
        # Feast, once imported by a test, turns on Prometheus's multi-process mode for all children.
        own = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_")}
        own |= child_environment(settings) | {"PYTHONPATH": str(self.folder)}
        own |= {f"GYRE_SOURCES__{name.upper()}": str(path) for name, path in sources.items()}
        command = [str(BIN / "gyre"), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=own, capture_output=True, text=True, check=True
        ).stdout


@pytest.fixture
def as_of() -> datetime:
    return AS_OF


@pytest.fixture
def spark_ends_here() -> Iterator[None]:
    """py4j leaves closing its sockets to the garbage collector, which may come in another test."""
    yield
    gc.collect()
