"""Scales of pictures, and points over time. Pure; templates/charts.html draws."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil, floor, isfinite, log10
from typing import Any


@dataclass(frozen=True)
class Axis:
    """Values low to high, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """Three to six round values between low and high."""
        rough = (self.high - self.low) / 3
        power: float = 10 ** floor(log10(rough))
        step = max(each * power for each in (1, 2, 5) if each * power <= rough)
        return [
            n * step for n in range(ceil(self.low / step), floor(self.high / step) + 1)
        ]


def axis(values: Iterable[float | None], start: float, end: float) -> Axis:
    """Return an axis that has room for all values that are known and finite."""
    finite = [value for value in values if value is not None and isfinite(value)] or [
        0.0
    ]
    low, high = min(finite), max(finite)
    room = (high - low) * 0.08 or abs(high) or 1.0
    return Axis(low if low == 0 else low - room, high + room, start, end)


@dataclass(frozen=True)
class Span:
    """The time that a page shows, aware UTC."""

    since: datetime
    until: datetime

    def at(self, moment: datetime) -> float:
        """Return its place in percent of the width; what came before is at the edge."""
        share = (moment - self.since) / (self.until - self.since)
        return round(1 + 98 * max(share, 0.0), 1)

    @property
    def days(self) -> list[datetime]:
        """Midnights to name below an axis, six at most."""
        midnight = self.until.astimezone(UTC).replace(
            hour=0, minute=0, second=0, microsecond=0
        )
        step = timedelta(
            days=max(1, round((self.until - self.since) / timedelta(days=6)))
        )
        return [
            day for n in range(6) if (day := midnight - (5 - n) * step) > self.since
        ]


@dataclass(frozen=True)
class Point:
    """A value of the monitoring run at `at` (UTC) with its 95 % interval; text: on that run."""

    at: datetime
    value: float
    text: str
    low: float | None = None
    high: float | None = None


def placed(
    points: Iterable[Point], span: Span, y: Axis, reports: Mapping[datetime, str]
) -> Iterator[tuple[Any, ...]]:
    """Yield x, y, both ends of the interval, a text, and the newest report since the point before.

    reports: addresses by time. Not in a template, where it takes five times as long.
    """
    times, before = sorted(reports), span.since
    for point in points:
        low, high = (
            None if value is None else y.at(value) for value in (point.low, point.high)
        )
        place = bisect_right(times, point.at)
        newest = times[place - 1] if place and times[place - 1] > before else None
        text = f"{point.value:.4g}, {point.text}"
        yield (
            span.at(point.at),
            y.at(point.value),
            low,
            high,
            text,
            newest and reports[newest],
        )
        before = point.at
