"""How a person or an event names a moment: one reading for the shell and for Airflow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

CLOCKS_DIFFER = timedelta(minutes=5)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def parse_moment(text: object, where: str) -> datetime:
    """Read an ISO 8601 time with an offset, as UTC.

    Raises:
        ValueError: names where it came from, what was expected and what was found. The future is
            no moment to act as of: features materialised up to it would stand still until then.

    """
    expected = f"{where}: expected a time like 2026-03-01T00:00:00Z, found {text!r}"
    try:
        time = datetime.fromisoformat(str(text))
        utc = time.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise ValueError(expected) from exc
    if time.tzinfo is None:
        raise ValueError(f"{expected}: it lacks an offset from UTC")
    if utc > datetime.now(UTC) + CLOCKS_DIFFER:
        raise ValueError(f"{where}: {text} lies in the future")
    return utc


def microseconds(moment: datetime) -> int:
    """Return `as_of` as on-demand views take it: whole microseconds (UTC) since the epoch."""
    since = moment - BEGINNING
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
