"""An installation with Redis and published definitions, empty again for each test."""

from __future__ import annotations

import gc
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conftest import AS_OF, BIN, feast_apply, new_settings, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from stack.settings import Settings


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


@pytest.fixture
def as_of() -> datetime:
    return AS_OF


@pytest.fixture
def spark_ends_here() -> Iterator[None]:
    """py4j leaves closing its sockets to the garbage collector, which may come in another test."""
    yield
    gc.collect()
