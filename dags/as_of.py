"""Which moment a run is about: one rule, the same for every task and every retry."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any

from stack.moment import parse_moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime


def resolve(
    params: Mapping[str, Any],
    extras: Iterable[Mapping[str, Any]],
    logical_date: datetime | None,
    run_after: datetime,
) -> datetime:
    """Return the parameter, else the newest event's `as_of`, else the logical date, else run_after.

    Nothing here changes between two tries of a task. All times are aware.

    Raises:
        ValueError: a given `as_of` is not an aware ISO 8601 time, or lies in the future.

    """
    if params.get("as_of"):
        return parse_moment(params["as_of"], "parameter as_of")
    events = [
        parse_moment(extra["as_of"], "the event's as_of") for extra in extras if extra.get("as_of")
    ]
    if events:
        return max(events)
    return (logical_date or run_after).astimezone(UTC)
