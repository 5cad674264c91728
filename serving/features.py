"""The online store as a worker sees it: known values now, the last known ones when it fails."""

import asyncio
import gc
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from core.errors import FeaturesUnavailableError, GyreError
from core.settings import Settings
from mlflow_server.served_model import LookupSpecification, ServedModel
from serving.lookup import Keys, Moments, RedisReader, Rows, StoredRow

if TYPE_CHECKING:
    from feature_repo.online import OnlineFeatures

T = TypeVar("T")
CACHE_SECONDS = 300.0
CACHE_ENTITIES = 50_000
PART = 500
"""Keys read at once, with a deadline of their own, and a second try where there are several."""
COLLECT = (50_000, 20, 100)  # an answer leaves no cycles behind
NOTHING = LookupSpecification(feast="", online_store="")
READ_SECONDS = 0.5  # of Feast
OPENING_SECONDS = 60.0  # of Feast, which takes seconds to import
logger = logging.getLogger(__name__)


class FeastReader:
    """Feast's own, for other online stores. One thread: if it hangs, nothing else does."""

    def __init__(
        self,
        settings: Settings,
        service: str,
        features: Sequence[str],
        store: Any = None,
    ) -> None:
        """store: a `feast.FeatureStore` in place of the one that `feature_store.yaml` names."""
        self._wanted = (settings, service, features, store)
        self._online: OnlineFeatures | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feast")

    async def read(self, keys: Keys, as_of: Moments) -> Rows:
        """As `RedisReader.read`, but no view is called absent; errors of Feast's stores pass."""
        return await self._run(READ_SECONDS, self._read, keys, as_of)

    async def probe(self) -> datetime | None:
        """As `RedisReader.probe`."""
        return await self._run(
            READ_SECONDS if self._online else OPENING_SECONDS, self._probe
        )

    async def close(self) -> None:
        """Let the batch under way end."""
        if self._online is not None:
            self._thread.submit(self._online.close)
        self._thread.shutdown(wait=False)

    async def _run(self, seconds: float, work: Callable[..., T], *args: Any) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(
                    self._thread, work, *args
                )
        except TimeoutError as exc:
            raise FeaturesUnavailableError(
                f"Feast: no answer within {seconds:g} s"
            ) from exc

    def _read(self, keys: Keys, as_of: Moments) -> Rows:
        if self._online is None:
            raise FeaturesUnavailableError("Feast: not opened yet")
        rows: Rows = []
        for moment, pairs in groupby(
            zip(keys, as_of, strict=True), key=lambda pair: pair[1]
        ):
            for features in self._online.read([key for key, _ in pairs], moment):
                rows.append(None if features is None else StoredRow(features))
        return rows

    def _probe(self) -> datetime | None:
        # 190 MB: only who needs Feast's reader has it.
        from feature_repo.online import OnlineFeatures  # noqa: PLC0415

        online = self._online or OnlineFeatures(*self._wanted)
        watermark = online.probe()  # the first call takes longer than a read may
        self._online = online
        return watermark


class FeatureSource:
    """One version's features, read through a circuit that `probe`, called every second, closes.

    A failed read opens it, or its deadline would hold up every request in turn; a ping is sent at
    once. `problem` says why it is open; `down` the same once a second try failed too.
    """

    def __init__(
        self,
        settings: Settings,
        contract: ServedModel | None,
        cache_seconds: float = CACHE_SECONDS,
        reader: RedisReader | FeastReader | None = None,
    ) -> None:
        """contract: None: there is no version yet, the store is only probed.

        reader: in place of the one that the contract needs (DataError: not readable here).
        """
        reads = {"feature_service", "features", "lookup"}
        self.asked = contract.model_dump_json(include=reads) if contract else ""
        """The same for versions that read the same: they share a source."""
        lookup = contract.lookup if contract else NOTHING
        names = tuple(contract.features) if contract else ()
        if contract and lookup.unsupported:
            reader = reader or FeastReader(settings, contract.feature_service, names)
        self._reader = reader or RedisReader(settings.redis_address, lookup, names)
        self._cache_seconds = cache_seconds
        self._last_known: OrderedDict[tuple[int | str, ...], tuple[float, StoredRow]]
        self._last_known = OrderedDict()
        self._probing = asyncio.Lock()
        self._probe: asyncio.Task[None] | None = None
        self._logged: str | None = None
        self.problem: str | None = "not opened yet"
        self.down: str | None = self.problem
        self.watermark: datetime | None = None
        """The time (UTC) up to which the source is complete and its features are online."""

    async def read(self, keys: Keys, as_of: Moments) -> tuple[Rows, str]:
        """Rows in the order of `keys`, which name the same columns in one order, and their origin.

        as_of: the moments (UTC) that clock-dependent features are about. `online`: None is an
        entity that does not exist. `cache`: the store failed, rows are at most 300 s old, None is
        an unknown one.
        """
        if self.problem is None:
            try:
                return await self._read(keys, as_of), "online"
            except Exception as exc:  # noqa: BLE001  (whatever it is, answers go on)
                if self.problem is None:  # others that waited fail with the first
                    self._failed(exc)
                    self._probe = asyncio.create_task(self.probe())
        oldest = time.monotonic() - self._cache_seconds
        rows: Rows = []
        for key in keys:
            read_at, row = self._last_known.get((*key.values(),), (0.0, None))
            rows.append(row if read_at >= oldest else None)
        return rows, "cache"

    async def _read(self, keys: Keys, as_of: Moments) -> Rows:
        rows: Rows = []
        for start in range(0, len(keys), PART):
            part = keys[start : start + PART]
            moments = as_of[start : start + PART]
            try:
                part_rows = await self._reader.read(part, moments)
            except FeaturesUnavailableError:
                if len(keys) <= PART:
                    raise
                await self._reader.probe()
                part_rows = await self._reader.read(part, moments)
            self._remember(part, part_rows)
            rows += part_rows
        return rows

    def _remember(self, keys: Keys, rows: Rows) -> None:
        now = time.monotonic()
        for key, row in zip(keys, rows, strict=True):
            if row and row.features:
                values = (*key.values(),)
                self._last_known[values] = (now, row)
                self._last_known.move_to_end(values)
        while len(self._last_known) > CACHE_ENTITIES:
            self._last_known.popitem(last=False)

    async def probe(self) -> None:
        """Open if need be, ping, read the watermark, once a second. Never raises."""
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
        problem = (
            str(exc) if isinstance(exc, GyreError) else f"{type(exc).__name__}: {exc}"
        )
        if self.problem is not None:
            self.down = problem
        if self._logged != problem:  # the same may be true of thousands of reads
            logger.warning("features: %s", problem)
        self.problem = self._logged = problem

    async def close(self) -> None:
        """Let reads that have begun end; nothing is opened any more."""
        await self._reader.close()


def settle() -> None:
    """Hide what is in memory now from the collector, which would stop the answers for 0.1 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)
