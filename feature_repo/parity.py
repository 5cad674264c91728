"""Parity: what Feast gives online at a moment is what it gives historically for that moment.

For each moment a Redis of its own is filled up to it by `store.materialize`, and read by Feast's
own client, without values that are past their time to live.
"""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from core.errors import DataError
from core.settings import LOOPBACK, Settings, free_ports
from core.timestamps import BEGINNING, microseconds
from feature_repo.features import entities
from feature_repo.online import OnlineFeatures
from feature_repo.store import FeatureStore, open_store

RELATIVE = 1e-9
"""How far floats may differ; whole numbers and strings may not."""
CHUNK, NAMED = 1_000, 10
SECONDS = 60.0
"""Deadline of one read or write; nobody waits for this Redis."""


@dataclass(frozen=True)
class ParityReport:
    """first: the first of the differences in words."""

    service: str
    entities: int
    features: int
    moments: tuple[datetime, ...]
    differences: int
    first: tuple[str, ...]

    @property
    def values(self) -> int:
        return self.entities * self.features * len(self.moments)

    def summary(self) -> str:
        head = (
            f"{self.service}: {self.entities} entities, {self.features} features, "
            f"{len(self.moments)} moments: {self.values} values, {self.differences} differences"
        )
        return "\n".join((head, *self.first))


def parity(
    settings: Settings,
    service: str,
    key: Sequence[str],
    moments: Sequence[datetime],
    say: Callable[[str], None],
) -> ParityReport:
    """Compare every feature of `service` for every entity of its views at each of `moments`.

    key: its join keys, see `entities`. moments: aware UTC. Request data is made up, the same
    for both sides. The installation's own stores are only read.

    Raises:
        DataError: there are no rows yet, or no Redis could be started.

    """
    offline = FeatureStore(settings)
    views = [*offline.views(service)]
    if not (known := entities(settings, views, key)):
        raise _no_rows(offline, service)
    names = list(offline.feature_types(service))
    data = offline.sample_request_data(service, len(known))
    asked, key = pd.DataFrame(known).assign(**data), [*key, *data]
    found, moments = list[str](), sorted(moments)
    with _online_only(settings) as aside:
        store, start = open_store(aside, SECONDS), BEGINNING
        online = OnlineFeatures(aside, service, names, store)
        for moment in moments:
            with redirect_stdout(sys.stderr):  # Feast prints
                store.materialize(start, moment, feature_views=views)
            frame = asked.assign(event_timestamp=moment, as_of=microseconds(moment))
            past = offline.historical(service, frame).select([*key, *names]).to_pylist()
            differ = list(_differences(past, online, moment, key, names))
            say(f"  {moment:%Y-%m-%d}: {len(past)} entities, {len(differ)} differences")
            found += [f"  {moment:%Y-%m-%d %H:%M} {line}" for line in differ]
            start = moment
        online.close()
    first = tuple(found[:NAMED])
    return ParityReport(service, len(known), len(names), tuple(moments), len(found), first)


def _no_rows(store: FeatureStore, service: str) -> DataError:
    commands = " and ".join(f"gyre ingest {each.name}" for each in store.datasets(service))
    return DataError(f"{service}: no rows yet; run: {commands}")


def _differences(
    offline: Sequence[dict[str, Any]],
    online: OnlineFeatures,
    moment: datetime,
    key: Collection[str],
    names: Sequence[str],
) -> Iterator[str]:
    for start in range(0, len(offline), CHUNK):
        rows = offline[start : start + CHUNK]
        keys = [{column: row[column] for column in key} for row in rows]
        for row, entity, read in zip(rows, keys, online.read(keys, moment), strict=True):
            there = read or dict.fromkeys(names)
            who = ", ".join(f"{column} {value}" for column, value in entity.items())
            for name in names:
                if not same(row[name], there[name]):
                    yield f"{who} {name}: offline {row[name]!r}, online {there[name]!r}"


def same(offline: Any, online: Any) -> bool:
    """Whether two values are one: null is null, floats within 1e-9 of each other, else equal."""
    if isinstance(offline, float) and isinstance(online, float):
        return math.isclose(offline, online, rel_tol=RELATIVE) or (
            math.isnan(offline) and math.isnan(online)
        )
    return bool(offline == online)


@contextmanager
def _online_only(settings: Settings) -> Iterator[Settings]:
    """Settings of a folder with the same definitions and offline files, and an empty Redis."""
    with TemporaryDirectory(prefix="gyre-parity-") as name:
        folder, port = Path(name), free_ports()["redis_port"]
        registry = open_store(settings, SECONDS).registry.proto()
        (folder / "feast").mkdir()
        (folder / "feast" / "registry.db").write_bytes(registry.SerializeToString())
        # The bundled one first, as the stack has it.
        places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        program = shutil.which("redis-server", path=places) or "redis-server"
        command = [program, "--bind", LOOPBACK, "--port", str(port), "--save", "", "--dir", name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                _wait_for_redis(port)
                yield settings.beside(folder, redis_url=None, redis_port=port)
            finally:
                server.kill()


def _wait_for_redis(port: int) -> None:
    try:
        with Redis(port=port, retry=Retry(ConstantBackoff(0.05), 200)) as redis:
            redis.ping()
    except RedisError as exc:
        raise DataError(f"a Redis of our own did not start: {exc}") from exc
