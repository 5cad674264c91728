"""The online store as a worker sees it: known values now, the last known ones when it fails."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from mlflow_server.lookup import LookupSpecification
from serving.feast_reader import FeastReader
from serving.lookup import RedisReader
from stack.errors import FeaturesUnavailableError, GyreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from mlflow_server.served_model import ServedModel
    from serving.lookup import Features
    from stack.settings import Settings
    from stack.spec import Entity

CACHE_SECONDS = 300.0
CACHE_ENTITIES = 50_000
PART = 500
"""Keys read at once; other micro-batches may go in between. Each part has its own deadline, and
where there are several a second try: one late reply is no reason to do without thousands."""
COLLECT = (50_000, 20, 100)
"""An answer leaves no cycles behind: the collector's default looks for them every few ticks."""
NOTHING = LookupSpecification(feast="", online_store="")
logger = logging.getLogger(__name__)


class FeatureSource:
    """One version's features, read through a circuit that `probe`, called every second, closes.

    After one failed read the store is left alone (its deadline would hold up every request in
    turn) until a ping succeeds; one is sent at once. `problem` says why it is left alone; `down`
    is the same once a second try failed too: one late answer is no outage.
    """

    def __init__(
        self,
        settings: Settings,
        contract: ServedModel | None,
        cache_seconds: float = CACHE_SECONDS,
        reader: RedisReader | FeastReader | None = None,
    ) -> None:
        """contract: None: there is no version yet, the store is only probed.

        reader: in place of the one that the contract's look-up specification needs.

        Raises:
            DataError: the specification is not one that this project can read.

        """
        reads = {"feature_service", "features", "lookup"}
        self.asked = contract.model_dump_json(include=reads) if contract else ""
        """The same for versions that read the same: they share a source."""
        lookup = contract.lookup if contract else NOTHING
        names = tuple(contract.features) if contract else ()
        if contract and lookup.unsupported:
            reader = reader or FeastReader(settings, contract.feature_service, names)
        self._reader = reader or RedisReader(settings.redis_address, lookup, names)
        self._last_known = LastKnown(cache_seconds)
        self._probing = asyncio.Lock()
        self._probe: asyncio.Task[None] | None = None
        self._logged: str | None = None
        self.problem: str | None = "not opened yet"
        self.down: str | None = self.problem
        self.watermark: datetime | None = None
        """The time (UTC) up to which the source is complete and its features are online."""

    async def read(
        self, keys: Sequence[Entity], as_of: Sequence[datetime]
    ) -> tuple[list[Features | None], str]:
        """Rows in the order of `keys`, which name the same columns in one order, and their origin.

        as_of: of each key the moment (UTC) that its clock-dependent features are about.
        `online`: None is an entity that does not exist, an empty row one that cannot be read.
        `cache`: the store failed, the rows are at most 300 s old, None is an entity of which
        nothing is known.
        """
        if self.problem is None:
            try:
                return await self._read(keys, as_of), "online"
            except Exception as exc:  # noqa: BLE001  (whatever it is, answers go on)
                if self.problem is None:  # others that waited fail with the first
                    self._failed(exc)
                    self._probe = asyncio.create_task(self.probe())
        return self._last_known.rows(keys), "cache"

    async def _read(
        self, keys: Sequence[Entity], as_of: Sequence[datetime]
    ) -> list[Features | None]:
        rows: list[Features | None] = []
        for at in range(0, len(keys), PART):
            part, moments = keys[at : at + PART], as_of[at : at + PART]
            try:
                found = await self._reader.read(part, moments)
            except FeaturesUnavailableError:
                if len(keys) <= PART:
                    raise
                await self._reader.probe()
                found = await self._reader.read(part, moments)
            self._last_known.remember(part, found)
            rows += found
        return rows

    async def probe(self) -> None:
        """Open if need be, ping, read the watermark. Never raises.

        For the event loop that reads, every second.
        """
        if self._probing.locked():
            return
        async with self._probing:
            try:
                self.watermark = await self._reader.probe()
            except Exception as exc:  # noqa: BLE001  (what is wrong is said by `problem`)
                self._failed(exc)
            else:
                self.problem = self.down = None

    def _failed(self, exc: Exception) -> None:
        said = str(exc) if isinstance(exc, GyreError) else f"{type(exc).__name__}: {exc}"
        if self.problem is not None:
            self.down = said
        if self._logged != said:  # the same may be true of thousands of reads
            logger.warning("features: %s", said)
        self.problem = self._logged = said

    async def close(self) -> None:
        """Let reads that have begun end; nothing is opened any more."""
        await self._reader.close()


class LastKnown:
    """Rows of the entities read last, each for some seconds; 50,000 at most."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rows: OrderedDict[tuple[int | str, ...], tuple[float, Features]] = OrderedDict()

    def remember(self, keys: Sequence[Entity], rows: Sequence[Features | None]) -> None:
        now = time.monotonic()
        for key, row in zip(keys, rows, strict=True):
            if row:
                values = (*key.values(),)
                self._rows[values] = (now, row)
                self._rows.move_to_end(values)
        while len(self._rows) > CACHE_ENTITIES:
            self._rows.popitem(last=False)

    def rows(self, keys: Sequence[Entity]) -> list[Features | None]:
        oldest = time.monotonic() - self._seconds
        found = (self._rows.get((*key.values(),)) for key in keys)
        return [known[1] if known and known[0] >= oldest else None for known in found]


def settle() -> None:
    """Take what is in memory now out of the collector's sight: a later full collection, with
    Feast's objects among others, would stop the answers for 0.1 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)
