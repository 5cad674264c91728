"""Moments as people, events and features give them: one reading for the shell and for Airflow."""

from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta

from core.errors import SettingsError

CLOCK_TOLERANCE = timedelta(minutes=5)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST_TIME = datetime(2, 1, 1, tzinfo=UTC)
LATEST_TIME = datetime(9999, 1, 1, tzinfo=UTC)
"""Between them a time is also one in every other zone, as Python has the years 1 to 9999."""


def parse_timestamp(text: object, where: str) -> datetime:
    """Read an ISO 8601 time with an offset, as UTC.

    Raises:
        SettingsError: It is no such time, or lies in the future: features that are materialised up
            to it would stand still until then.

    """
    expected = f"{where}: expected a time like 2026-03-01T00:00:00Z, found {text!r}"
    try:
        time = datetime.fromisoformat(str(text))
        utc = time.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise SettingsError(expected) from exc
    if time.tzinfo is None:
        raise SettingsError(f"{expected}: it lacks an offset from UTC")
    if utc > datetime.now(UTC) + CLOCK_TOLERANCE:
        raise SettingsError(f"{where}: {text} lies in the future")
    return utc


def microseconds(moment: datetime) -> int:
    """Return a moment as on-demand views take it: whole microseconds since 1970 UTC."""
    return (moment - BEGINNING) // timedelta(microseconds=1)


def whole_second(moment: datetime) -> datetime:
    """Return a feature's timestamp as Feast keeps it: whole seconds, UTC.

    Raises:
        ValueError: It has no offset from UTC, or Feast cannot keep its year.

    """
    if moment.tzinfo is None or not MINYEAR < moment.year < MAXYEAR:
        raise ValueError(
            f"expected a time with an offset, of the years 2 to 9998, found {moment}"
        )
    return moment.astimezone(UTC).replace(microsecond=0)
