"""The history of each check, and positions in its picture, which templates/macros.html draws."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from typing import NamedTuple

from core.settings import Settings
from monitoring.check import CheckResult
from monitoring.decisions.store import (
    newest_decisions,
    sampled_decisions,
    stored_checks,
)

DAYS = 30
"""Days that a page shows."""
HOURS = 6
"""Hours of which a page shows one monitoring run."""
WORST = ("harmful", "bad", "alert", "unknown", "note", "ok")
"""Statuses of a check, the worst first."""
ACTING = "Acted on, the worst first"
TRAFFIC = "Traffic"
PASSIVE = "Shown, never acted on"
HEADINGS = (ACTING, TRAFFIC, PASSIVE)
TRAFFIC_NAMES = ("serving/", "volume/")
"""How the names of checks of traffic begin."""
MAX_DRAWN = 12
"""Acting checks that are drawn. A page for one check draws that one, whichever it is."""
AT_ONCE = 30
"""Runs whose checks are read at once: checks of a year take 100 MB."""
BOTTOM = 102
TOP = 8
"""Pixels of a picture, of 120, between which its values lie."""


class Point(NamedTuple):
    """The part of a check's result that is drawn."""

    value: float
    limit: float | None
    status: str


@dataclass
class Series:
    """One check over time.

    Attributes:
        newest: The newest result.
        points: Points by the moment of their monitoring run, the oldest first.

    """

    newest: CheckResult
    points: dict[datetime, Point]

    def badness(self) -> tuple[int, float]:
        """Return a key that sorts the worst first: by status, then by distance from the limit.

        A limit may be the most or the least. A bad value lies beyond it, and is worse the farther it
        is; another value is worse the nearer it is.
        """
        place = WORST.index(self.newest.status)
        distance = self.newest.distance()
        if distance is None:
            return place, inf
        is_beyond = place < WORST.index("unknown")
        return place, -distance if is_beyond else distance


def read_history(settings: Settings, model: str) -> list[Series]:
    """Read the checks of one monitoring run for each HOURS of the last DAYS, and of the newest run.

    Returns:
        A series for each check, the worst first.

    Raises:
        DataError: A table cannot be read.

    """
    since = datetime.now(UTC) - timedelta(days=DAYS)
    rows = sampled_decisions(settings, model, since, HOURS)
    rows += newest_decisions(settings, model, 1)
    moments = sorted({row.as_of for row in rows})
    series: dict[str, Series] = {}
    for start in range(0, len(moments), AT_ONCE):
        some = moments[start : start + AT_ONCE]
        for moment, results in sorted(stored_checks(settings, model, some).items()):
            for result in results:
                if result.value is not None:
                    point = Point(result.value, result.limit, result.status)
                    one = series.setdefault(result.name, Series(result, {}))
                    one.newest = result
                    one.points[moment] = point
    return sorted(series.values(), key=Series.badness)


def panels_of(
    series: Iterable[Series], check_name: str | None
) -> dict[str, list[Series]]:
    """Return the series to draw by heading, the worst first; or the one of a check."""
    panels: dict[str, list[Series]] = {heading: [] for heading in HEADINGS}
    for one in series:
        result = one.newest
        is_ok = result.status == "ok"
        heading = ACTING
        if not result.acts:
            heading = PASSIVE
        elif is_ok and result.name.startswith(TRAFFIC_NAMES):
            heading = TRAFFIC
        is_drawn = not is_ok or result.limit is not None or heading == TRAFFIC
        if result.name == check_name if check_name else is_drawn:
            panels[heading].append(one)
    del panels[ACTING][MAX_DRAWN:]
    return panels


@dataclass(frozen=True)
class Span:
    """The span of time that a page shows, aware UTC."""

    since: datetime
    until: datetime

    def place(self, moment: datetime) -> float:
        """Return the place of a moment in percent of the width; earlier moments are at the edge."""
        share = (moment - self.since) / (self.until - self.since)
        return round(1 + 98 * max(share, 0.0), 1)

    def ticks(self, count: int) -> dict[datetime, str]:
        """Return labels below a picture: at most `count` days, or times of day under two days."""
        length = self.until - self.since
        if length < timedelta(days=2):
            step = length / count
            moments = [self.since + step * (number + 0.5) for number in range(count)]
            return {moment: f"{moment:%H:%M}" for moment in moments}
        midnight = self.until.replace(hour=0, minute=0, second=0, microsecond=0)
        step = timedelta(days=-(length.days // -count))
        midnights = [midnight - number * step for number in reversed(range(count))]
        return {
            moment: f"{moment:%b} {moment.day}"
            for moment in midnights
            if moment > self.since
        }


def shown_span(promotions: Iterable[datetime], now: datetime) -> Span:
    """Return the last DAYS, or the span since the first promotion if that is shorter."""
    since = now - timedelta(days=DAYS)
    first = min(promotions, default=since) - timedelta(minutes=1)
    return Span(max(since, first), now)


@dataclass(frozen=True)
class Mark:
    """A result in a picture: `x` in percent of the width, `y` and `limit` in pixels."""

    x: float
    y: float
    limit: float | None
    status: str
    text: str


@dataclass(frozen=True)
class Picture:
    """A series with positions; `ticks` has the values at both ends of the scale by pixel."""

    marks: list[Mark]
    ticks: dict[int, float]


def picture_of(one: Series, span: Span) -> Picture:
    """Compute the positions of a series; a template would take five times as long."""
    points = one.points.values()
    values = [point.value for point in points]
    values += [point.limit for point in points if point.limit is not None]
    low = min(values)
    high = max(values)
    if low < high / 2:
        low = min(low, 0.0)
    pixels = (BOTTOM - TOP) / ((high - low) or 1.0)
    marks = [
        Mark(
            x=span.place(moment),
            y=round(BOTTOM - pixels * (value - low), 1),
            limit=None if limit is None else round(BOTTOM - pixels * (limit - low), 1),
            status=status,
            text=f"{moment:%Y-%m-%d %H:%M} UTC: {value:.4g}, {status}",
        )
        for moment, (value, limit, status) in one.points.items()
    ]
    return Picture(marks, {TOP: high, BOTTOM: low})
