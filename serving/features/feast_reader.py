"""Feast's own reader, for online stores other than Redis and for views that need it."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from core.errors import FeaturesUnavailableError
from core.settings import Settings
from serving.features.lookup import Keys, Moments, StoredRow, StoredRows

if TYPE_CHECKING:
    from feature_repo.published.feast_reader import OnlineFeatures

T = TypeVar("T")
READ_SECONDS = 0.5
"""Deadline of a read."""
OPENING_SECONDS = 60.0
"""Deadline of the first probe: the import of Feast takes seconds."""


class FeastReader:
    """Reads rows as `RedisReader` does, in a thread of its own: if it hangs, nothing else does.

    No view is reported as absent, and errors of Feast's stores are passed on.
    """

    def __init__(
        self, settings: Settings, service: str, features: Sequence[str]
    ) -> None:
        self._arguments = (settings, service, features)
        self._online: OnlineFeatures | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feast")

    async def read(self, keys: Keys, moments: Moments) -> StoredRows:
        """Return rows as `RedisReader.read` does."""
        return await self._run(READ_SECONDS, self._read, keys, moments)

    async def probe(self) -> datetime | None:
        """Probe as `RedisReader.probe` does."""
        seconds = OPENING_SECONDS if self._online is None else READ_SECONDS
        return await self._run(seconds, self._probe)

    async def close(self) -> None:
        """Let the batch under way end."""
        if self._online is not None:
            self._thread.submit(self._online.close)
        self._thread.shutdown(wait=False)

    async def _run(self, seconds: float, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                return await loop.run_in_executor(self._thread, work, *arguments)
        except TimeoutError as exc:
            raise FeaturesUnavailableError(
                f"Feast: no answer within {seconds:g} s"
            ) from exc

    def _read(self, keys: Keys, moments: Moments) -> StoredRows:
        if self._online is None:
            raise FeaturesUnavailableError("Feast: not opened yet")
        rows: StoredRows = []
        pairs = zip(moments, keys, strict=True)
        for moment, group in groupby(pairs, key=itemgetter(0)):
            for features in self._online.read([key for _, key in group], moment):
                rows.append(None if features is None else StoredRow(features))
        return rows

    def _probe(self) -> datetime | None:
        # 190 MB: only a worker that needs Feast's reader has it.
        from feature_repo.published.feast_reader import OnlineFeatures  # noqa: PLC0415

        online = self._online
        if online is None:
            online = OnlineFeatures(*self._arguments)
            online.warm_up()  # the first calls take longer than a read may
        watermark = online.probe()
        self._online = online
        return watermark
