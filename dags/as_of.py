"""Which moment a run is about: one rule, the same for every task and every retry."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def parse(text: str, where: str) -> datetime:
    """Read an ISO 8601 time with an offset, as UTC.

    Raises:
        ValueError: names where it came from, what was expected and what was found.

    """
    expected = f"{where}: expected a time like 2026-03-01T00:00:00Z, found {text!r}"
    if not isinstance(text, str):
        raise ValueError(expected)  # noqa: TRY004  (one kind of error for one kind of mistake)
    try:
        time = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ValueError(expected) from exc
    if time.tzinfo is None:
        raise ValueError(f"{expected}: it lacks an offset from UTC")
    return time.astimezone(UTC)


def resolve(
    params: Mapping[str, Any],
    extras: Iterable[Mapping[str, Any]],
    logical_date: datetime | None,
    run_after: datetime,
) -> datetime:
    """Return the parameter, else the newest event's `as_of`, else the logical date, else run_after.

    Nothing here changes between two tries of a task. All times are aware.

    Raises:
        ValueError: a given `as_of` is not an aware ISO 8601 time.

    """
    if params.get("as_of"):
        return parse(params["as_of"], "parameter as_of")
    events = [parse(extra["as_of"], "the event's as_of") for extra in extras if extra.get("as_of")]
    if events:
        return max(events)
    return (logical_date or run_after).astimezone(UTC)
