"""The online store as serving sees it: known values now, the last known ones when it fails."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from datetime import datetime  # noqa: TC003  (the protocol's annotations are public)
from typing import TYPE_CHECKING, Protocol

from serving.model import settle
from stack.errors import GyreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stack.settings import Settings
    from stack.spec import FeatureType

CACHE_SECONDS = 300.0
CACHE_ENTITIES = 50_000
PROBE_SECONDS = 1.0
logger = logging.getLogger(__name__)

StoredRow = dict[str, int | float | str | None]


class Features(Protocol):
    """What `feature_repo.online.OnlineFeatures` gives: blocking, Redis at most 50 ms a call."""

    def read(self, keys: Sequence[int | str], as_of: datetime) -> list[StoredRow | None]: ...
    def ping(self) -> None: ...
    def watermark(self) -> datetime | None: ...
    def close(self) -> None: ...


def online_features(
    settings: Settings, service: str, entity_key: str, features: tuple[str, ...]
) -> Features:
    """Feast's reader. Feast takes seconds to import: the server is live before that."""
    from feature_repo.online import OnlineFeatures  # noqa: PLC0415

    return OnlineFeatures(settings, service, entity_key, features)


class FeatureSource:
    """One feature service, read through a circuit that the background probe closes again.

    After one failed read the store is left alone (its deadline would hold up every request in
    turn) until a ping from the probe's thread succeeds; the probe is woken at once.
    """

    def __init__(self, open_reader: Callable[[], Features], wake: threading.Event) -> None:
        self._open_reader, self._wake = open_reader, wake
        self._reader: Features | None = None
        self._cache: OrderedDict[int | str, tuple[float, StoredRow]] = OrderedDict()
        self.problem: str | None = "not opened yet"
        self.probed_at = time.monotonic()
        self.watermark: datetime | None = None

    def read(
        self, keys: Sequence[int | str], as_of: datetime
    ) -> tuple[list[StoredRow | None], str]:
        """Rows in the order of `keys` and where they are from.

        `online`: None is an entity that does not exist. `cache`: the store failed, the rows are
        at most 300 s old, None is an entity of which nothing is known.
        """
        if self._reader is not None and self.problem is None:
            try:
                rows = self._reader.read(keys, as_of)
            except Exception as exc:  # noqa: BLE001  (whatever it is, answers go on)
                self._failed(exc)
                self._wake.set()
            else:
                self._remember(keys, rows)
                return rows, "online"
        oldest = time.monotonic() - CACHE_SECONDS
        known = (self._cache.get(key, (oldest - 1, None)) for key in keys)
        return [row if at >= oldest else None for at, row in known], "cache"

    def _remember(self, keys: Sequence[int | str], rows: Sequence[StoredRow | None]) -> None:
        now, cache = time.monotonic(), self._cache
        for key, row in zip(keys, rows, strict=True):
            if row is not None:
                cache[key] = (now, row)
                cache.move_to_end(key)
        while len(cache) > CACHE_ENTITIES:
            cache.popitem(last=False)

    def probe(self) -> None:
        """Open if need be, ping, and read the watermark. Never raises."""
        try:
            if self._reader is None:
                self._reader = self._open_reader()
                settle()
            self._reader.ping()
            self.problem = None
            self.watermark = self._reader.watermark()
        except Exception as exc:  # noqa: BLE001  (the thread goes on and says what is wrong)
            self._failed(exc)
        self.probed_at = time.monotonic()

    def _failed(self, exc: Exception) -> None:
        known = isinstance(exc, GyreError)
        problem = str(exc) if known else f"{type(exc).__name__}: {exc}"
        if problem != self.problem:
            logger.warning("features: %s", problem, exc_info=None if known else exc)
        self.problem = problem

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class FeatureSources:
    """Every source in use (one per service and feature list), and the thread that probes them."""

    def __init__(
        self, settings: Settings, open_features: Callable[..., Features] = online_features
    ) -> None:
        self._settings, self._open = settings, open_features
        self._sources: dict[tuple[str, ...], FeatureSource] = {}
        self._wake, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    def source(
        self, service: str, entity_key: str, features: Mapping[str, FeatureType]
    ) -> FeatureSource:
        names = tuple(features)
        key = (service, entity_key, *names)
        if key not in self._sources:
            self._sources[key] = FeatureSource(
                lambda: self._open(self._settings, service, entity_key, names), self._wake
            )
            self._wake.set()
        return self._sources[key]

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped:
            self._wake.clear()
            for source in list(self._sources.values()):
                source.probe()
            self._wake.wait(PROBE_SECONDS)

    def close(self) -> None:
        self._stopped = True
        self._wake.set()
        self._thread.join(5)
        for source in self._sources.values():
            source.close()
