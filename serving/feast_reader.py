"""Features by Feast's own reader: of other online stores, and of what only Feast can read."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

from stack.errors import FeaturesUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from feature_repo.online import OnlineFeatures
    from serving.lookup import Features
    from stack.settings import Settings
    from stack.spec import Entity

T = TypeVar("T")
READ_SECONDS, OPENING_SECONDS = 0.5, 60.0
"""Feast takes seconds to import; a read of it some milliseconds."""


class FeastReader:
    """One thread, opened by the first probe; a store that hangs holds up nothing else."""

    def __init__(
        self, settings: Settings, service: str, features: Sequence[str], store: Any = None
    ) -> None:
        """store: a `feast.FeatureStore` in place of the one that `feature_store.yaml` names."""
        self._wanted = (settings, service, features, store)
        self._online: OnlineFeatures | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feast")

    async def read(
        self, keys: Sequence[Entity], as_of: Sequence[datetime]
    ) -> list[Features | None]:
        """As `RedisReader.read`; whatever a store of Feast's raises passes."""
        return await self._run(READ_SECONDS, self._read, keys, as_of)

    async def probe(self) -> datetime | None:
        """As `RedisReader.probe`."""
        return await self._run(READ_SECONDS if self._online else OPENING_SECONDS, self._probe)

    async def close(self) -> None:
        """Let the batch under way end."""
        if self._online is not None:
            self._thread.submit(self._online.close)
        self._thread.shutdown(wait=False)

    async def _run(self, seconds: float, work: Callable[..., T], *args: Any) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        except TimeoutError as exc:
            raise FeaturesUnavailableError(f"Feast: no answer within {seconds:g} s") from exc

    def _read(self, keys: Sequence[Entity], as_of: Sequence[datetime]) -> list[Features | None]:
        if self._online is None:
            raise FeaturesUnavailableError("Feast: not opened yet")
        rows: list[Features | None] = []
        for moment, pairs in groupby(zip(keys, as_of, strict=True), key=lambda pair: pair[1]):
            rows += self._online.read([key for key, _ in pairs], moment)
        return rows

    def _probe(self) -> datetime | None:
        # 190 MB: only who needs Feast's reader has it.
        from feature_repo.online import OnlineFeatures  # noqa: PLC0415

        online = self._online or OnlineFeatures(*self._wanted)
        online.ping()  # the first call takes longer than a read may
        self._online = online
        return online.watermark()
