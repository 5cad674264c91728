"""The online store as a worker sees it: its values now, or the last ones while it fails."""

import asyncio
import logging
import time
from collections import OrderedDict
from datetime import datetime

from core.errors import FeaturesUnavailableError, GyreError
from core.settings import Settings
from feature_repo.published.config import online_redis
from mlflow_server.manifest import LookupSpecification, ModelManifest
from serving.features.feast_reader import FeastReader
from serving.features.lookup import Keys, Moments, StoredRow, StoredRows
from serving.features.redis_reader import RedisReader

CACHE_SECONDS = 300.0
CACHE_ENTITIES = 50_000
PART = 500
"""Keys read at once, with a deadline of their own, and a second try where there are several."""
NO_LOOKUP = LookupSpecification(feast="", online_store="")
logger = logging.getLogger(__name__)


class NoReader:
    """Stands for a reader where requests bring all features: nothing is read, nothing can fail."""

    async def read(self, keys: Keys, _moments: Moments) -> StoredRows:
        """Return no row of any key."""
        return [None] * len(keys)

    async def probe(self) -> None:
        """Find nothing wrong."""

    async def close(self) -> None:
        """Close nothing."""


class FeatureSource:
    """One version's features, read through a circuit breaker.

    A failed read opens it, and a ping is sent at once: else each request would wait for its
    deadline. `probe`, called every second, closes it.

    Attributes:
        problem: Why nothing is read now; None: features are read.
        down: The problem, once a second try has failed too.
        watermark: Time (aware UTC) up to which the source is complete and its features are online.
        identity: The same text for versions that read the same. They share a source.

    """

    def __init__(
        self,
        settings: Settings,
        contract: ModelManifest | None,
        cache_seconds: float = CACHE_SECONDS,
    ) -> None:
        """Prepare to read; `probe` opens the connection.

        Args:
            settings: Settings of the installation.
            contract: Contract of the version; None: there is no version yet, the store is only probed.
            cache_seconds: Age up to which a row that was read is used while the store fails.

        Raises:
            DataError: The features cannot be read here.

        """
        self.identity = ""
        lookup = NO_LOOKUP
        features: tuple[str, ...] = ()
        reader: RedisReader | FeastReader | NoReader | None = None
        if contract is not None and not contract.feature_service:
            self.identity = "requests"
            reader = NoReader()
        elif contract is not None:
            fields = {"feature_service", "features", "lookup"}
            self.identity = contract.model_dump_json(include=fields)
            lookup = contract.lookup
            features = tuple(contract.features)
            if lookup.unsupported:
                reader = FeastReader(settings, contract.feature_service, features)
        self._reader = reader or RedisReader(online_redis(settings), lookup, features)
        self._cache_seconds = cache_seconds
        self._cache = OrderedDict[tuple[int | str, ...], tuple[float, StoredRow]]()
        self._probing = asyncio.Lock()
        self._probe_task: asyncio.Task[None] | None = None
        self.problem: str | None = "not opened yet"
        self.down: str | None = self.problem
        self.watermark: datetime | None = None

    async def read(self, keys: Keys, moments: Moments) -> tuple[StoredRows, str]:
        """Read rows; never raises.

        Args:
            keys: Entities, which name the same columns in one order.
            moments: For each key the time (aware UTC) that clock-dependent features are about.

        Returns:
            Rows in the order of the keys, and where they are from. "online": None is an entity
            that does not exist. "cache": the store failed, rows are at most 300 s old, and None
            is one that was not read in that time.

        """
        if self.problem is None:
            try:
                return await self._read(keys, moments), "online"
            except Exception as exc:  # noqa: BLE001  (whatever it is, answers go on)
                if self.problem is None:  # others that waited fail with the first
                    self._open_circuit(exc)
                    self._probe_task = asyncio.create_task(self.probe())
        oldest = time.monotonic() - self._cache_seconds
        rows = []
        for key in keys:
            read_at, row = self._cache.get((*key.values(),), (0.0, None))
            rows.append(row if read_at >= oldest else None)
        return rows, "cache"

    async def _read(self, keys: Keys, moments: Moments) -> StoredRows:
        rows = []
        for start in range(0, len(keys), PART):
            part = keys[start : start + PART]
            part_moments = moments[start : start + PART]
            try:
                part_rows = await self._reader.read(part, part_moments)
            except FeaturesUnavailableError:
                if len(keys) <= PART:
                    raise
                await self._reader.probe()
                part_rows = await self._reader.read(part, part_moments)
            self._remember(part, part_rows)
            rows += part_rows
        return rows

    def _remember(self, keys: Keys, rows: StoredRows) -> None:
        now = time.monotonic()
        for key, row in zip(keys, rows, strict=True):
            if row and row.features:
                values = (*key.values(),)
                self._cache[values] = (now, row)
                self._cache.move_to_end(values)
        while len(self._cache) > CACHE_ENTITIES:
            self._cache.popitem(last=False)

    async def probe(self) -> None:
        """Open if need be, ping, read the watermark. Never raises."""
        if self._probing.locked():
            return
        async with self._probing:
            try:
                self.watermark = await self._reader.probe()
            except Exception as exc:  # noqa: BLE001  (`problem` says it)
                is_second = self.problem is not None
                self._open_circuit(exc)
                if is_second:
                    self.down = self.problem
            else:
                self.problem = None
                self.down = None

    def _open_circuit(self, exc: Exception) -> None:
        problem = f"{type(exc).__name__}: {exc}"
        if isinstance(exc, GyreError):
            problem = str(exc)
        if problem != self.problem:
            logger.warning("features: %s", problem)
        self.problem = problem

    async def close(self) -> None:
        """Let reads that have begun end; nothing is opened any more."""
        await self._reader.close()
