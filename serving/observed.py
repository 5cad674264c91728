"""A source that may be slow or hang, read without waiting for it."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
PATIENCE = 2.0
"""Seconds that who asks waits for all that it asked: Prometheus and the monitor wait longer."""
KEPT = timedelta(minutes=1)


@dataclass(frozen=True)
class Observed(Generic[T_co]):
    """A value, and when (UTC) it was so; without both: unknown, and why."""

    value: T_co | None = None
    at: datetime | None = None
    why: str = "not read yet"

    def still(self, kept: timedelta = KEPT) -> "Observed[T_co]":
        """Return this unless it is older than `kept`: what was so then is unknown now."""
        if self.at is None or datetime.now(UTC) - self.at <= kept:
            return self
        return Observed(why=f"silent since {self.at:%Y-%m-%d %H:%M:%S} UTC")


class Reading(Generic[T]):
    """Reads a source when asked, in a thread of its own; one read at a time."""

    def __init__(self, read: Callable[[], T], every: float) -> None:
        """every: seconds for which what was read is good enough."""
        self._read, self._every, self._due = read, every, 0.0
        self._lock = threading.Lock()
        self._thread = threading.Thread()
        self._last = Observed[T]()

    def begin(self) -> None:
        """Have it read, unless a read goes on or the last one is good enough."""
        with self._lock:
            if time.monotonic() >= self._due and not self._thread.is_alive():
                self._thread = threading.Thread(target=self._look, daemon=True)
                self._thread.start()

    def wait(self, until: float) -> None:
        """Wait for the read to end; `until`, monotonic seconds, at most."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, until - time.monotonic()))

    @property
    def last(self) -> Observed[T]:
        """What was last read; unknown: the source refuses, or has been silent for a minute."""
        return self._last.still(KEPT + timedelta(seconds=self._every))

    def _look(self) -> None:
        began = datetime.now(UTC)
        try:
            self._last = Observed(self._read(), began)
            self._due = time.monotonic() + self._every
        except Exception as exc:  # noqa: BLE001  (whatever it is, the source is unknown)
            self._last = Observed(why=" ".join(f"{exc}".split()))


def ask(readings: Sequence[Reading[Any]]) -> None:
    """Have all of them read at once, and wait for them together."""
    for reading in readings:
        reading.begin()
    until = time.monotonic() + PATIENCE
    for reading in readings:
        reading.wait(until)
