"""Periods of event time: the rows of a feature view are cut into files of one period each."""

from datetime import datetime, timedelta

from core.timestamps import BEGINNING

PERIOD = timedelta(days=28)
PERIOD_MICROSECONDS = PERIOD // timedelta(microseconds=1)


def period_of(moment: datetime) -> int:
    """Return the number of the period that a moment lies in."""
    return (moment - BEGINNING) // PERIOD
