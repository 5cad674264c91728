"""The history of each check, and the figures of its chart, which static/charts.js draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any, NamedTuple

from core.settings import Settings
from monitoring.check import CheckResult
from monitoring.decisions.store import (
    newest_decisions,
    sampled_decisions,
    stored_checks,
)

RANGES = (1, 7, 30, 90)
"""Days that a page may show."""
DAYS = 30
"""Days that a page shows unless it is asked for others."""
MAX_POINTS = 120
"""Points of a chart: each stands for the same share of its time."""
BAD = ("harmful", "bad", "alert")
WORST = (*BAD, "unknown", "note", "ok")
"""Statuses of a check, the worst first."""
ACTING = "Checks that act, the worst first"
TRAFFIC = "Traffic"
PASSIVE = "Checks that never act"
UNMEASURED = "Not measured by the newest monitoring run"
TRAFFIC_NAMES = ("serving/", "volume/")
"""How the names of checks of traffic begin."""
MAX_DRAWN = 12
"""Acting checks that are drawn. A page for one check draws that one, whichever it is."""
AT_ONCE = 30
"""Runs whose checks are read at once: checks of a year take 100 MB."""
DIGITS = 5
"""Significant digits of a value on a page."""


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
        return place, -distance if self.newest.status in BAD else distance


def read_history(settings: Settings, model: str, days: int) -> list[Series]:
    """Read the checks of at most MAX_POINTS monitoring runs of the last days, and of the newest run.

    Runs of the first hour are as far apart in a chart as those of a month.

    Returns:
        A series for each check, the worst first.

    Raises:
        DataError: A table cannot be read.

    """
    now = datetime.now(UTC)
    since = now - timedelta(days=days)
    step = timedelta(days=days) / MAX_POINTS
    rows = sampled_decisions(settings, model, since, step)
    if rows:
        shorter_step = max((now - rows[0].as_of) / MAX_POINTS, timedelta(seconds=1))
        if shorter_step < step / 2:
            rows = sampled_decisions(settings, model, since, shorter_step)
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
    series: Sequence[Series], check_name: str | None
) -> dict[str, list[Series]]:
    """Return the series to draw by heading, the worst first; or the one of a check."""
    headings = (ACTING, TRAFFIC, PASSIVE, UNMEASURED)
    panels: dict[str, list[Series]] = {heading: [] for heading in headings}
    newest_run = max((max(one.points) for one in series), default=None)
    for one in series:
        result = one.newest
        is_ok = result.status == "ok"
        heading = ACTING
        if newest_run not in one.points:
            heading = UNMEASURED
        elif not result.acts:
            heading = PASSIVE
        elif is_ok and result.name.startswith(TRAFFIC_NAMES):
            heading = TRAFFIC
        is_drawn = not is_ok or result.limit is not None or heading == TRAFFIC
        if result.name == check_name if check_name else is_drawn:
            panels[heading].append(one)
    del panels[ACTING][MAX_DRAWN:]
    return panels


def chart_data(series: Sequence[Series], now: datetime) -> dict[str, Any]:
    """Return the figures of charts for static/charts.js; times are seconds since 1970.

    Returns:
        `times` of all points, the oldest first; `since` and `until`, the ends of every time axis; and
        in `charts`, by name of a check, `values` and `limits` at these times (None: no run measured
        it) and `bad`, the places of bad ones.

    """
    moments = sorted({moment for check in series for moment in check.points})
    charts = {}
    for check in series:
        points = [check.points.get(moment) for moment in moments]
        charts[check.newest.name] = {
            "values": [_rounded(point.value) if point else None for point in points],
            "limits": [_rounded(point.limit) if point else None for point in points],
            "bad": [
                place
                for place, point in enumerate(points)
                if point and point.status in BAD
            ],
        }
    return {
        "times": [round(moment.timestamp()) for moment in moments],
        "since": min([*moments, now]).timestamp(),
        "until": now.timestamp(),
        "charts": charts,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
