"""One connection to Redis: micro-batches of look-ups, one after another, each with a deadline."""

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from hiredis import HiredisError

from core.errors import FeaturesUnavailableError
from mlflow_server.manifest import LookupSpecification
from serving.features.lookup import Keys, Moments, RowReader, StoredRows
from serving.features.redis_connection import Command, RedisConnection, open_connection

OPENING_SECONDS = 1.0
"""Deadline to connect and to log in."""
READ_SECONDS = 0.05
"""Deadline of a read."""
KEY_SECONDS = 0.000_01
"""Further time for each key."""


class RedisReader:
    """Reads rows over a connection of its own, which `probe` opens.

    An error of a batch ends the connection, and fails the batches that wait for it.
    """

    def __init__(
        self, address: str, lookup: LookupSpecification, features: Sequence[str]
    ) -> None:
        self._rows = RowReader(lookup, features)
        state_keys = sorted({view.state for view in lookup.views if view.state})
        self._ping = ("MGET", *state_keys) if state_keys else ("PING",)
        self._address = address
        self._connection: RedisConnection | None = None
        self._turn = asyncio.Lock()
        self._closed = False

    async def read(self, keys: Keys, moments: Moments) -> StoredRows:
        """Return the rows of keys.

        Args:
            keys: Entities, with what on-demand functions take from the request.
            moments: For each key the time (aware UTC) that clock-dependent features are about.

        Raises:
            FeaturesUnavailableError: Redis does not answer in time.

        """
        commands = self._rows.commands(keys)
        replies = await self._ask(commands, READ_SECONDS + KEY_SECONDS * len(keys))
        return self._rows.rows(replies, keys, moments)

    async def probe(self) -> datetime | None:
        """Open the connection if need be, and read up to when (aware UTC) features are online.

        Raises:
            FeaturesUnavailableError: Redis does not answer, or has no features.

        """
        if self._connection is None:
            await self._ask((), OPENING_SECONDS)
        (states,) = await self._ask([self._ping], READ_SECONDS)
        if not isinstance(states, list):
            return None
        times = []
        for state in states:
            # Null until all is online.
            time = json.loads(state)["time"] if state else None
            if time is None:
                raise FeaturesUnavailableError(
                    "Redis holds no features (any more): run gyre ingest"
                )
            times.append(datetime.fromisoformat(time))
        return min(times)

    async def close(self) -> None:
        """Let the batches under way end; nothing is opened any more."""
        self._closed = True
        async with self._turn:
            self._disconnect()

    async def _ask(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """Return the replies to commands. Without commands, open the connection."""
        async with self._turn:
            if self._connection is None and (commands or self._closed):
                raise FeaturesUnavailableError("Redis: not connected")
            try:
                async with asyncio.timeout(seconds):
                    if self._connection is None:
                        opened = await open_connection(self._address)
                        self._connection, commands = opened
                    return await self._connection.ask(commands)
            except BaseException as exc:
                self._disconnect()
                if isinstance(exc, HiredisError | OSError):
                    reason = f"{exc}"
                    if isinstance(exc, TimeoutError):
                        reason = f"no answer within {seconds * 1000:.0f} ms"
                    raise FeaturesUnavailableError(f"Redis: {reason}") from exc
                raise

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
