"""Parity: compares the features online at a moment with Feast's historical features of that moment.

A Redis beside that of the installation is refreshed for each moment as an ingest does, and read by
Feast's own client.
"""

import logging
import secrets
import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from tempfile import TemporaryFile

import pyarrow as pa
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from core.errors import DataError
from core.settings import LOOPBACK, Settings, free_ports
from core.timestamps import microseconds
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import entities, require_built
from feature_engine.online.refresh import refresh_online
from feature_engine.online.values import OnlineValues
from feature_repo.definition import Dataset
from feature_repo.online_store import find_server
from feature_repo.published.feast_reader import OnlineFeatures
from feature_repo.published.service import ARROW, PublishedService, is_same_value
from feature_repo.published.store import open_store

log = logging.getLogger(__name__)
ENTITIES_AT_ONCE = 1_000
SHOWN_DIFFERENCES = 10
REDIS_SECONDS = 60.0
"""Time that a read or a write may take; nobody waits for this Redis."""
REQUEST_VALUE = pa.scalar(1_000_000)
"""Value of all request data, cast to the type of each field; for a time it is one second."""


@dataclass(frozen=True)
class ParityReport:
    """The compared values, with a line for each that differs."""

    service: str
    entities: int
    features: int
    moments: tuple[datetime, ...]
    differences: tuple[str, ...]

    def summary(self) -> str:
        values = self.entities * self.features * len(self.moments)
        head = (
            f"{self.service}: {self.entities} entities, {self.features} features, "
            f"{len(self.moments)} moments: {values} values, {len(self.differences)} differences"
        )
        return "\n  ".join((head, *self.differences[:SHOWN_DIFFERENCES]))


def parity(
    settings: Settings,
    service_name: str,
    moments: Sequence[datetime],
) -> ParityReport:
    """Compare every feature of a service for every entity of its views at some moments.

    The stores of the installation are only read. Request data is made up, the same for both sides.

    Args:
        settings: Settings of the installation.
        service_name: Name of the feature service.
        moments: Times to compare at, aware UTC.

    Raises:
        DataError: A view has no rows yet, or lacks the rows of its expression.

    """
    service = PublishedService(settings, service_name)
    datasets = service.datasets()
    entity_keys = entities(settings, service.join_keys, service.key_types)
    if not entity_keys.num_rows:
        commands = " and ".join(f"gyre ingest {name}" for name in datasets)
        raise DataError(f"{service_name}: no rows yet; run: {commands}")
    require_built(service)
    frame = entity_keys.to_pandas()
    for name, kind in service.request_data.items():
        frame[name] = REQUEST_VALUE.cast(ARROW[kind]).as_py()
    names = list(service.features)
    stored_views = {view.projection.name for view in service.stored}
    stored_names = {
        name for name, view in service.feature_views.items() if view in stored_views
    }
    columns = [*frame.columns, *names]
    differences: list[str] = []
    with _redis_beside(settings) as comparison:
        store = open_store(comparison, REDIS_SECONDS)
        online = OnlineFeatures(comparison, service_name, names, store)
        for moment in sorted(moments):
            for dataset in datasets.values():
                _refresh(comparison, dataset, moment)
            dated = frame.assign(event_timestamp=moment, as_of=microseconds(moment))
            rows = service.historical(dated).select(columns)
            lines = _differences(rows, online, moment, names, stored_names)
            log.info("%s: %d differences", moment, len(lines))
            differences += lines
    return ParityReport(
        service=service_name,
        entities=entity_keys.num_rows,
        features=len(names),
        moments=tuple(sorted(moments)),
        differences=tuple(differences),
    )


def _refresh(settings: Settings, dataset: Dataset, moment: datetime) -> None:
    raw = raw_table(settings, dataset)
    with closing(OnlineValues(settings, dataset, raw)) as online:
        refresh_online(online, clock=lambda: moment)


def _differences(
    rows: pa.Table,
    online: OnlineFeatures,
    moment: datetime,
    names: Sequence[str],
    stored_names: Collection[str],
) -> list[str]:
    """Return a line for each value of `rows` that differs online.

    An entity without a row online must have no stored feature offline.
    """
    lines = []
    for batch in rows.to_batches(max_chunksize=ENTITIES_AT_ONCE):
        keys = batch.drop_columns(names).to_pylist()
        online_rows = online.read(keys, moment)
        for key, row, online_row in zip(
            keys, batch.to_pylist(), online_rows, strict=True
        ):
            for name in names:
                if online_row is None and name not in stored_names:
                    continue  # offline, its value is made of request data alone
                online_value = online_row[name] if online_row else None
                if not is_same_value(row[name], online_value):
                    values = f"offline {row[name]!r}, online {online_value!r}"
                    lines.append(f"{moment:%Y-%m-%d %H:%M} {key} {name}: {values}")
    return lines


@contextmanager
def _redis_beside(settings: Settings) -> Iterator[Settings]:
    """Give settings of the same installation with another Redis, which is empty."""
    port = free_ports()["redis_port"]
    password = secrets.token_urlsafe(32)
    # "-" stands for stdin: everybody can see the arguments of a process.
    options = ["-", "--bind", LOOPBACK, "--port", str(port), "--save", ""]
    with TemporaryFile() as config:
        config.write(f"requirepass {password}\n".encode())
        config.seek(0)
        server = subprocess.Popen(
            [find_server(), *options], stdin=config, stdout=subprocess.DEVNULL
        )
    with server:
        try:
            url = f"redis://:{password}@{LOOPBACK}:{port}/0"
            retry = Retry(ConstantBackoff(0.05), 200)
            with Redis.from_url(url, retry=retry) as redis:
                redis.ping()
            stores = {"redis_url": url, "online_store": None}
            yield settings.model_copy(update=stores)
        finally:
            server.kill()
