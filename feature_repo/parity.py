"""Parity: what is online at a moment is what Feast gives historically for that moment.

A Redis of its own is brought to each moment as ingest does it, and read by Feast's own client.
"""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
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
from core.timestamps import microseconds
from feature_repo.features import raw_table
from feature_repo.online import OnlineFeatures
from feature_repo.refresh import refresh_online
from feature_repo.store import FeatureStore, open_store
from feature_repo.views import entities

RELATIVE_TOLERANCE = 1e-9
"""How far floats may differ; whole numbers and strings may not."""
ENTITIES_AT_ONCE = 1_000
SHOWN_DIFFERENCES = 10
REDIS_SECONDS = 60.0
"""What one read or write may take; nobody waits for this Redis."""
Row = dict[str, Any]


@dataclass(frozen=True)
class ParityReport:
    """What was compared, and how many values differ.

    Attributes:
        first: The first of the differences in words.

    """

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
    """Compare every feature of a service for every entity of its views at some moments.

    The installation's own stores are only read. Request data is made up, the same for both sides.

    Args:
        settings: Of the installation.
        service: Name of the feature service.
        key: Its join keys: see `entities`.
        moments: Aware UTC.
        say: Takes a line after each moment.

    Raises:
        DataError: There are no rows yet, or no Redis could be started.

    """
    offline = FeatureStore(settings)
    datasets = offline.datasets(service)
    known_entities = entities(settings, offline.views(service), key)
    if not known_entities:
        commands = " and ".join(f"gyre ingest {dataset.name}" for dataset in datasets)
        raise DataError(f"{service}: no rows yet; run: {commands}")
    names = list(offline.feature_types(service))
    request_data = offline.sample_request_data(service, len(known_entities))
    frame = pd.DataFrame(known_entities).assign(**request_data)
    columns = [*key, *request_data]
    differences: list[str] = []
    with _redis_beside(settings) as beside:
        store = open_store(beside, REDIS_SECONDS)
        with closing(OnlineFeatures(beside, service, names, store)) as online:
            for moment in sorted(moments):
                for dataset in datasets:
                    raw = raw_table(settings, dataset)
                    refresh_online(beside, dataset, raw, clock=partial(_same, moment))
                dated = frame.assign(event_timestamp=moment, as_of=microseconds(moment))
                rows = offline.historical(service, dated).select([*columns, *names]).to_pylist()
                lines = list(_differences(rows, online, moment, columns, names))
                say(f"  {moment:%Y-%m-%d}: {len(rows)} entities, {len(lines)} differences")
                differences += [f"  {moment:%Y-%m-%d %H:%M} {line}" for line in lines]
    return ParityReport(
        service=service,
        entities=len(known_entities),
        features=len(names),
        moments=tuple(sorted(moments)),
        differences=len(differences),
        first=tuple(differences[:SHOWN_DIFFERENCES]),
    )


def _same(moment: datetime) -> datetime:
    return moment


def _differences(
    rows: Sequence[Row],
    online: OnlineFeatures,
    moment: datetime,
    columns: Sequence[str],
    names: Sequence[str],
) -> Iterator[str]:
    """Yield a line for each value of `rows` that is another one online."""
    for start in range(0, len(rows), ENTITIES_AT_ONCE):
        batch = rows[start : start + ENTITIES_AT_ONCE]
        keys = [{column: row[column] for column in columns} for row in batch]
        for row, key, stored in zip(batch, keys, online.read(keys, moment), strict=True):
            online_row = stored or dict.fromkeys(names)
            entity = ", ".join(f"{column} {value}" for column, value in key.items())
            for name in names:
                if not same(row[name], online_row[name]):
                    yield f"{entity} {name}: offline {row[name]!r}, online {online_row[name]!r}"


def same(offline: Any, online: Any) -> bool:
    """Whether two values are one: null is null, floats within 1e-9 of each other, else equal."""
    if isinstance(offline, float) and isinstance(online, float):
        if math.isnan(offline) and math.isnan(online):
            return True
        return math.isclose(offline, online, rel_tol=RELATIVE_TOLERANCE)
    return bool(offline == online)


@contextmanager
def _redis_beside(settings: Settings) -> Iterator[Settings]:
    """Give settings of the same installation with an empty Redis of its own."""
    port = free_ports()["redis_port"]
    # The bundled one first, as the stack has it.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    program = shutil.which("redis-server", path=path) or "redis-server"
    with TemporaryDirectory(prefix="gyre-parity-") as folder:
        command = [program, "--bind", LOOPBACK, "--port", str(port), "--save", "", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                _wait_for_redis(port)
                yield settings.model_copy(update={"redis_url": None, "redis_port": port})
            finally:
                server.kill()


def _wait_for_redis(port: int) -> None:
    try:
        with Redis(port=port, retry=Retry(ConstantBackoff(0.05), 200)) as redis:
            redis.ping()
    except RedisError as exc:
        raise DataError(f"a Redis of our own did not start: {exc}") from exc
