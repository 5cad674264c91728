"""Feature rows are cut into periods of event time."""

from datetime import timedelta

PERIOD = timedelta(days=28)
PERIOD_US = PERIOD // timedelta(microseconds=1)
