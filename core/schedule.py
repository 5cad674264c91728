"""Schedules: a cron expression (UTC), or one of Airflow's names."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator

from core.timestamps import BEGINNING

CRON_FIELDS = ("minute", "hour", "day of the month", "month", "day of the week")
AIRFLOWS_OWN = {"@quarterly": "0 0 1 */3 *"}
"""Names that Airflow knows and croniter does not."""
COMPARED_RUNS = 100
COMPARED_TIME = timedelta(days=8)
"""Runs whose distances are compared, and the least time that they cover: a schedule may pause at
night, or on Sundays."""


def checked_schedule(schedule: str) -> str:
    """Return the schedule if Airflow knows it.

    Raises:
        ValueError: Airflow does not know it, or its time never comes.

    """
    # 0.1 s; Airflow reads schedules with it.
    from croniter import CroniterBadDateError, CroniterError, croniter  # noqa: PLC0415

    names = "@hourly, @daily, @weekly, @monthly, @quarterly or @yearly"
    expected = f"expected a cron expression of five fields, {names}"
    try:
        dates = croniter(AIRFLOWS_OWN.get(schedule, schedule))
        dates.get_next()
    except CroniterBadDateError as exc:
        raise ValueError(f"{expected}; {schedule!r} never comes") from exc
    except CroniterError as exc:
        raise ValueError(f"{expected}; found {schedule!r}") from exc
    if len(dates.expanded) > len(CRON_FIELDS):
        fields = ", ".join(CRON_FIELDS)
        raise ValueError(f"{expected} ({fields}); found {schedule!r}")
    return schedule


Schedule = Annotated[str, AfterValidator(checked_schedule)]


def periods(schedule: str) -> list[timedelta]:
    """Return the times between runs: of `0 8-18 * * *`, an hour, and 14 hours at night."""
    from croniter import croniter  # noqa: PLC0415

    dates = croniter(AIRFLOWS_OWN.get(schedule, schedule), BEGINNING)
    moments = [dates.get_next(datetime)]
    end = BEGINNING + COMPARED_TIME
    while len(moments) < COMPARED_RUNS or moments[-1] < end:
        moments.append(dates.get_next(datetime))
    return [later - earlier for earlier, later in pairwise(moments)]
