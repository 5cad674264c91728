"""Readers of sources that may be slow or hang; nobody waits long for them."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)
PATIENCE = 1.0  # seconds that a request waits for all its sources
KEPT = timedelta(seconds=30)  # how long the last value of a source that hangs is shown


@dataclass(frozen=True)
class Reading(Generic[T_co]):
    """A value and the moment (UTC) of its reading; without both it is unknown, and `why` says why."""

    value: T_co | None = None
    at: datetime | None = None
    why: str = f"no answer within {PATIENCE:g} s"


class CachedReader(Generic[T_co]):
    """Reads a source in a thread of its own, again once the value is `seconds` old."""

    def __init__(
        self, read: Callable[[], T_co], seconds: float = 1.0, *, keeps: bool = False
    ) -> None:
        """Make a reader; `keeps`: the last value is shown until there is a newer one."""
        self._read = read
        self._keeps = keeps
        self._fresh = timedelta(seconds=seconds)
        self._reading = Reading[T_co]()
        self._began = datetime.now(UTC)
        self._thread = threading.Thread()

    def begin(self) -> threading.Thread:
        """Return the thread that reads; start one unless one still reads or the value is new."""
        at = self._reading.at
        if not self._thread.is_alive() and not (
            at and datetime.now(UTC) - at < self._fresh
        ):
            self._began = datetime.now(UTC)
            thread = threading.Thread(target=self._run, daemon=True)
            thread.start()
            self._thread = thread  # only now: others may join it
        return self._thread

    @property
    def is_reading(self) -> bool:
        """Whether an answer is still to come."""
        return self._thread.is_alive()

    @property
    def reading(self) -> Reading[T_co]:
        """The last reading; an unknown value if the source refuses, or hangs longer than `KEPT`."""
        last = self._reading
        if self._keeps:
            return last
        if last.at and datetime.now(UTC) - last.at > KEPT + self._fresh:
            # The time since the last answer would mislead: nobody may have asked for hours.
            return Reading(why=f"no answer since {self._began:%Y-%m-%d %H:%M:%S} UTC")
        return last

    def _run(self) -> None:
        began = datetime.now(UTC)
        try:
            self._reading = Reading(self._read(), began)
        except Exception as exc:  # noqa: BLE001  (whatever it is, the source is unknown)
            if self._keeps and self._reading.at:
                return
            self._reading = Reading(
                why=" ".join(f"{exc}".split()) or type(exc).__name__
            )


def read_all(readers: Iterable[CachedReader[Any]]) -> None:
    """Read all sources at once, and wait for them together, at most `PATIENCE`."""
    threads = [reader.begin() for reader in readers]
    until = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
