"""The online store as a worker sees it: known values now, the last known ones when it fails."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import OrderedDict
from contextlib import suppress
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from feature_repo.serving_plan import load_plan, plan_path
from serving.metrics import FEATURE_FALLBACKS
from serving.reader import DirectReader, Features
from serving.redis_connection import RedisConnection, command
from stack.errors import FeaturesUnavailableError, GyreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feature_repo.online import OnlineFeatures
    from stack.settings import Settings
    from stack.spec import Entity

CACHE_SECONDS = 300.0
CACHE_ENTITIES = 50_000
READ_SECONDS, KEY_SECONDS = 0.05, 0.000_01
"""Redis's deadline: for a read, and for each key beside it."""
TOGETHER = 500
"""Keys read in one go; others may read in between. Each go has its own deadline, and where there
are several a second try: one late answer is no reason to do without thousands."""
CANARY_SECONDS = 5.0
"""A value may be corrected at its event time; a new plan says so before this has passed."""
COLLECT = (50_000, 20, 100)
"""An answer leaves no cycles behind: the collector's default looks for them every few ticks."""
logger = logging.getLogger(__name__)


class UnreadError(GyreError):
    """A row that only Feast's reader can answer, and it cannot, or not yet."""


class FeatureSource:
    """One feature service, read through a circuit that `probe`, called every second, closes again.

    After one failed read the store is left alone (its deadline would hold up every request in
    turn) until a ping succeeds; one is sent at once. `problem` says why it is left alone; `down`
    is the same once a second try failed too: one late answer is no outage. `fallback` says why
    Feast's own reader answers everything; else None.
    """

    def __init__(
        self,
        settings: Settings,
        service: str,
        features: tuple[str, ...],
        cache_seconds: float = CACHE_SECONDS,
    ) -> None:
        self.asked = (service, features)
        self._settings, self._file = settings, plan_path(settings, service)
        self._redis = RedisConnection(settings.redis_address)
        self._known = LastKnown(cache_seconds)
        self._direct: DirectReader | None = None
        self._loaded: tuple[int, int] | None = None
        self._feast: asyncio.Task[OnlineFeatures] | None = None
        self._probing = asyncio.Lock()
        self._beside = set[asyncio.Task[None]]()
        self._doubtful_since: float | None = None
        self._said: str | None = None
        self.problem: str | None = "not opened yet"
        self.down: str | None = self.problem
        self.fallback: str | None = None
        self.watermark: datetime | None = None
        """The time (UTC) up to which the source is complete and its features are online."""

    async def read(
        self, keys: Sequence[Entity], as_of: Sequence[datetime]
    ) -> tuple[list[Features | None], str]:
        """Rows in the order of `keys`, which name the same columns in one order, and their origin.

        as_of: of each key the moment (UTC) that its clock-dependent features are about.
        `online`: None is an entity that does not exist. `cache`: the store failed, the rows are
        at most 300 s old, None is an entity of which nothing is known.
        """
        if self.problem is None:
            try:
                return await self._read(keys, as_of), "online"
            except UnreadError as exc:
                self._say(str(exc))
            except Exception as exc:  # noqa: BLE001  (whatever it is, answers go on)
                self._failed(exc)
                self._start(self.probe())
        return self._known.rows(keys), "cache"

    async def _read(
        self, keys: Sequence[Entity], as_of: Sequence[datetime]
    ) -> list[Features | None]:
        rows, several = list[Features | None](), len(keys) > TOGETHER
        for at in range(0, len(keys), TOGETHER):
            part, moments = keys[at : at + TOGETHER], as_of[at : at + TOGETHER]
            try:
                found = await self._read_part(part, moments)
            except FeaturesUnavailableError:
                if not several:
                    raise
                found = await self._read_part(part, moments)
            self._known.remember(part, found)
            rows += found
        return rows

    async def _read_part(
        self, keys: Sequence[Entity], as_of: Sequence[datetime]
    ) -> list[Features | None]:
        direct = self._direct  # a new plan may come while Redis is asked
        if direct is None or self.fallback is not None:
            reason = f"{self.fallback}".partition(":")[0]
            return await self._by_feast(keys, as_of, dict.fromkeys(range(len(keys)), reason))
        commands, seconds = direct.commands(keys), READ_SECONDS + KEY_SECONDS * len(keys)
        replies = await self._redis.ask(b"".join(commands), len(commands), seconds)
        rows, odd = direct.rows(replies, keys, as_of)
        if odd:
            self._known.remember(keys, rows)
            found = await self._by_feast([keys[n] for n in odd], [as_of[n] for n in odd], odd)
            for n, row in zip(odd, found, strict=True):
                rows[n] = row
        return rows

    async def _by_feast(
        self, keys: Sequence[Entity], as_of: Sequence[datetime], reasons: dict[int, str]
    ) -> list[Features | None]:
        for reason in reasons.values():
            FEATURE_FALLBACKS.labels(reason).inc()
        try:
            return await asyncio.to_thread(_read_by_feast, self._reader(), keys, as_of)
        except (FeaturesUnavailableError, UnreadError):
            raise
        except Exception as exc:
            raise UnreadError(f"Feast: {type(exc).__name__}: {exc}") from exc

    async def probe(self) -> None:
        """Open if need be, ping, read the watermark, and see whether the plan holds. Never raises.

        For the event loop that reads, every second.
        """
        if self._probing.locked():
            return
        async with self._probing:
            try:
                await self._look()
            except Exception as exc:  # noqa: BLE001  (what is wrong is said by `problem`)
                again = self.problem is not None
                self._failed(exc)
                if again:
                    self.down = self.problem
            else:
                self.problem = self.down = None

    async def _look(self) -> None:
        direct = self._load()
        asked = [command(b"MGET", *direct.plan.marks), *direct.probe()]
        await self._redis.open()
        marks, *live = await self._redis.ask(b"".join(asked), len(asked), READ_SECONDS)
        if None in marks:
            raise FeaturesUnavailableError("Redis holds no features (any more): gyre ingest")
        self.watermark = min(datetime.fromisoformat(mark.decode()) for mark in marks)
        if self.fallback is None:
            self._compare(direct, live)
        if self.fallback is not None:
            self._reader()

    def _load(self) -> DirectReader:
        """Read the plan if it is a new one; one that cannot be used is none beside the last."""
        try:
            found = self._file.stat()
            stamp = found.st_mtime_ns, found.st_ino
        except FileNotFoundError:
            stamp = None
        if self._direct is not None and stamp in {None, self._loaded}:
            return self._direct
        service, features = self.asked
        try:
            direct = DirectReader(load_plan(self._settings, service), features)
        except GyreError as exc:
            if self._direct is None:
                raise
            self._say(str(exc))
            return self._direct
        if direct.problem is not None:
            self._say(direct.problem)
        self._direct, self._loaded, self.fallback = direct, stamp, direct.problem
        self._doubtful_since = None
        return direct

    def _compare(self, direct: DirectReader, live: Sequence[Any]) -> None:
        doubt, readable = direct.compare(live)
        now = time.monotonic()
        self._doubtful_since = (self._doubtful_since or now) if doubt else None
        if self._doubtful_since is None:
            return
        if not readable or now >= self._doubtful_since + CANARY_SECONDS:
            self.fallback = doubt
            self._say(f"{doubt}")

    def _reader(self) -> OnlineFeatures:
        """Return Feast's own reader; it is opened beside what goes on, which takes seconds.

        Raises:
            UnreadError: it is not open yet, or could not be opened; the next call tries again.

        """
        if self._feast is None:
            opening = asyncio.to_thread(_open_feast, self._settings, *self.asked)
            self._feast = asyncio.create_task(opening)
        if not self._feast.done():
            raise UnreadError("Feast's own reader is being opened")
        try:
            return self._feast.result()
        except Exception as exc:
            self._feast = None
            raise UnreadError(f"Feast: {type(exc).__name__}: {exc}") from exc

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled() and (exc := task.exception()):
            self._say(f"{type(exc).__name__}: {exc}")

    def _failed(self, exc: Exception) -> None:
        problem = str(exc) if isinstance(exc, GyreError) else f"{type(exc).__name__}: {exc}"
        self._say(problem)
        self.problem = problem

    def _say(self, what: str) -> None:
        """Log what is new: the same may be true of thousands of reads."""
        if what != self._said:
            logger.warning("features: %s", what)
        self._said = what

    async def close(self) -> None:
        """End what is under way; reads that have begun are answered."""
        await self._redis.close(READ_SECONDS)
        for task in self._beside:
            task.cancel()
        if self._feast is not None:
            with suppress(UnreadError):
                await asyncio.to_thread(self._reader().close)


class LastKnown:
    """Rows of the entities read last, each for some seconds; 50,000 at most."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rows: OrderedDict[tuple[int | str, ...], tuple[float, Features]] = OrderedDict()

    def remember(self, keys: Sequence[Entity], rows: Sequence[Features | None]) -> None:
        now, known = time.monotonic(), self._rows
        for key, row in zip(((*key.values(),) for key in keys), rows, strict=True):
            if row is not None:
                known[key] = (now, row)
                known.move_to_end(key)
        while len(known) > CACHE_ENTITIES:
            known.popitem(last=False)

    def rows(self, keys: Sequence[Entity]) -> list[Features | None]:
        oldest = time.monotonic() - self._seconds
        found = (self._rows.get((*key.values(),), (oldest - 1, None)) for key in keys)
        return [row if at >= oldest else None for at, row in found]


def _open_feast(settings: Settings, service: str, features: tuple[str, ...]) -> OnlineFeatures:
    # Feast takes seconds to import and 190 MB: only who needs its reader has it.
    from feature_repo.online import OnlineFeatures  # noqa: PLC0415

    reader = OnlineFeatures(settings, service, features)
    settle()
    return reader


def _read_by_feast(
    reader: OnlineFeatures, keys: Sequence[Entity], as_of: Sequence[datetime]
) -> list[Features | None]:
    rows = list[Any]()
    for moment, pairs in groupby(zip(keys, as_of, strict=True), key=lambda pair: pair[1]):
        rows += reader.read([key for key, _ in pairs], moment)
    return rows


def settle() -> None:
    """Take what is in memory now out of the collector's sight: a later full collection, with
    Feast's objects among others, would stop the answers for 0.1 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)
