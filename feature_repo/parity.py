"""Parity: what Feast gives online at a moment is what it gives historically for that moment.

For each moment the online store is filled up to it, in a Redis of its own, by Feast's own
materialise, and read by Feast's own client: what is compared is what any Feast client would get.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from feature_repo.extensions.online import as_of as reading_as_of
from feature_repo.features import entities
from feature_repo.store import FeatureStore, open_store
from stack.errors import DataError
from stack.moment import BEGINNING, microseconds
from stack.preflight import free_ports
from stack.ready import redis_pong
from stack.settings import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import datetime

    from feature_repo.definition import Dataset
    from stack.settings import Settings

RELATIVE = 1e-9
"""How far floats may differ; whole numbers and strings may not."""
CHUNK, NAMED, PATIENCE = 1_000, 10, 10.0
SECONDS = 60.0
"""Deadline of one read or write; nobody waits for this Redis."""


@dataclass(frozen=True)
class ParityReport:
    """How many values were compared, how many differed, and the first of those in words."""

    service: str
    entities: int
    features: int
    moments: tuple[datetime, ...]
    values: int
    differences: int
    first: tuple[str, ...]

    def summary(self) -> str:
        """Say it in one line and one for each named difference."""
        head = (
            f"{self.service}: {self.entities} entities, {self.features} features, "
            f"{len(self.moments)} moments: {self.values} values, {self.differences} differences"
        )
        return "\n".join((head, *self.first))

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"moments": [moment.isoformat() for moment in self.moments]}


def parity(
    settings: Settings,
    dataset: Dataset,
    service: str,
    key: Collection[str],
    moments: Sequence[datetime],
    say: Callable[[str], None],
) -> ParityReport:
    """Compare every feature of `service` for every entity of `dataset` at each of `moments`.

    key: the entity's join keys. moments: aware UTC. The installation's own stores are only read.

    Raises:
        DataError: there are no rows yet, or no Redis could be started.

    """
    known = entities(settings, dataset.views, key)
    if not known:
        raise DataError(f"{dataset.name}: no rows yet; run: gyre ingest {dataset.name}")
    offline = FeatureStore(settings)
    names = list(offline.feature_types(service))
    compared, found = 0, list[str]()
    moments = sorted(moments)
    with _online_only(settings) as aside:
        online, start = open_store(aside, SECONDS), BEGINNING
        asked = online.get_feature_service(service)
        for moment in moments:
            with redirect_stdout(sys.stderr):  # Feast prints
                online.materialize(start, moment, feature_views=list(dataset.views))
            instant = microseconds(moment)
            frame = pd.DataFrame(known).assign(event_timestamp=moment, as_of=instant)
            past = offline.historical(service, frame).select([*key, *names]).to_pylist()
            rows = [entity | {"as_of": instant} for entity in known]
            now = dict[Any, dict[str, Any]]()
            for position in range(0, len(rows), CHUNK):
                with reading_as_of(moment):  # a time to live counts from there
                    chunk = online.get_online_features(asked, rows[position : position + CHUNK])
                columns = chunk.to_dict()
                keys, values = (
                    zip(*(columns[name] for name in asked_for), strict=True)
                    for asked_for in (key, names)
                )
                now |= zip(keys, (dict(zip(names, v, strict=True)) for v in values), strict=True)
            differ = [
                f"  {', '.join(f'{of} {row[of]}' for of in key)} at {moment:%Y-%m-%d %H:%M} "
                f"{name}: offline {row[name]!r}, online {there[name]!r}"
                for row in past
                for there in [now[tuple(row[of] for of in key)]]
                for name in names
                if not same(row[name], there[name])
            ]
            say(f"  {moment:%Y-%m-%d}: {len(past)} entities, {len(differ)} differences")
            compared += len(past) * len(names)
            found += differ
            start = moment
    return ParityReport(service, len(known), len(names), tuple(moments), compared,
                        len(found), tuple(found[:NAMED]))  # fmt: skip


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
        (folder / "feast").mkdir()
        shutil.copy(settings.home / "feast" / "registry.db", folder / "feast")
        # The bundled one first, as the stack has it.
        places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        program = shutil.which("redis-server", path=places) or "redis-server"
        command = [program, "--bind", LOOPBACK, "--port", str(port), "--save", "", "--dir", name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                until = time.monotonic() + PATIENCE
                while problem := redis_pong(port):
                    if time.monotonic() > until:
                        raise DataError(f"a Redis of our own did not start: {problem}")
                    time.sleep(0.05)
                own = {"home": folder, "redis_url": None, "redis_port": port}
                yield settings.model_copy(update=own)
            finally:
                server.kill()
