"""The online store as serving sees it: known values now, the last known ones when it fails."""

from __future__ import annotations

import gc
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from stack.errors import GyreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from feature_repo.online import Features, OnlineFeatures
    from stack.settings import Settings
    from stack.spec import Entity

CACHE_SECONDS = 300.0
CACHE_ENTITIES = 50_000
logger = logging.getLogger(__name__)


class FeatureSource:
    """One feature service, read through a circuit that `probe`, called every second, closes again.

    After one failed read the store is left alone (its deadline would hold up every request in
    turn) until a ping succeeds; `wake` asks for that at once. `problem` says why it is left alone;
    `down` is the same once a second try failed too: one late answer is no outage.
    """

    def __init__(
        self,
        settings: Settings,
        service: str,
        features: tuple[str, ...],
        cache_seconds: float = CACHE_SECONDS,
    ) -> None:
        self.asked = (service, features)
        self._settings, self._cache_seconds = settings, cache_seconds
        self._reader: OnlineFeatures | None = None
        self._cache: OrderedDict[tuple[int | str, ...], tuple[float, Features]] = OrderedDict()
        self.problem: str | None = "not opened yet"
        self.down: str | None = self.problem
        self.watermark: datetime | None = None
        self.newest_event: datetime | None = None
        self.not_built: list[str] | None = None
        """Views published and not computed since, in words; None: not looked at yet."""

    fallback = None

    async def read(
        self, keys: Sequence[Entity], as_of: Sequence[datetime]
    ) -> tuple[list[Features | None], str]:
        """Rows in the order of `keys`, which name the same columns in one order, and their origin.

        `online`: None is an entity that does not exist. `cache`: the store failed, the rows are
        at most 300 s old, None is an entity of which nothing is known.
        """
        if self._reader is not None and self.problem is None:
            try:
                rows = self._reader.read(keys, as_of[0])
            except Exception as exc:  # noqa: BLE001  (whatever it is, answers go on)
                self._failed(exc)
            else:
                self._remember(keys, rows)
                return rows, "online"
        oldest = time.monotonic() - self._cache_seconds
        known = (self._cache.get((*key.values(),), (oldest - 1, None)) for key in keys)
        return [row if at >= oldest else None for at, row in known], "cache"

    def _remember(self, keys: Sequence[Entity], rows: Sequence[Features | None]) -> None:
        now, cache = time.monotonic(), self._cache
        for key, row in zip(((*key.values(),) for key in keys), rows, strict=True):
            if row is not None:
                cache.pop(key, None)
                cache[key] = (now, row)
        while len(cache) > CACHE_ENTITIES:
            cache.popitem(last=False)

    async def probe(self) -> None:
        import asyncio

        await asyncio.to_thread(self._probe)

    def _probe(self) -> None:
        """Open if need be, ping, and read the watermark. Never raises."""
        try:
            if self._reader is None:
                self._reader = self._open()
            self._reader.ping()
            self.problem = self.down = None
            self.watermark = self._reader.watermark()
        except Exception as exc:  # noqa: BLE001  (what is wrong is said by `problem`)
            again = self.problem is not None
            self._failed(exc)
            if again:
                self.down = self.problem

    def look_at_source(self, dataset: str) -> None:
        """Read when the source of `dataset` last had an event, and what of it is not built."""
        if self._reader is not None:  # Feast is imported by then
            from feature_repo.freshness import newest_event  # noqa: PLC0415

            self.newest_event = newest_event(self._settings, dataset)
            self.not_built = self._reader.not_built()

    def _open(self) -> OnlineFeatures:
        # Feast takes seconds to import: the server is live before that.
        from feature_repo.online import OnlineFeatures  # noqa: PLC0415

        reader = OnlineFeatures(self._settings, *self.asked)
        return reader

    def _failed(self, exc: Exception) -> None:
        problem = str(exc) if isinstance(exc, GyreError) else f"{type(exc).__name__}: {exc}"
        if problem != self.problem:
            logger.warning("features: %s", problem)
        if self.problem is None:
            pass
        self.problem = problem

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def settle() -> None:
    """Take what is in memory now out of the collector's sight: a later full collection, with
    Feast's objects among others, would stop the answers for 0.1 s.
    """
    gc.collect()
    gc.freeze()
