"""`gyre maintain`: deletes expired rows and files. It may be killed at any time."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from core.errors import DataError, SettingsError
from core.locks import one_writer
from core.settings import Settings
from core.spec import broken_specs, load_specs
from core.tables.addresses import table_names
from core.user_code import in_one_line
from feature_repo.labels import label_source
from operations.clean import GROWING_PLACES, TIME_COLUMNS, GrowingPlace, clean_table

LEAST_AGE_OF_JUDGED = timedelta(days=30)
"""How long a prediction stays at least once its outcome can be known."""


@dataclass(frozen=True, kw_only=True)
class Cleanup:
    """The rows and files that were deleted in a place.

    Attributes:
        what: Name of the place.
        files: Number of files.
        rows: Number of rows.
        problem: The reason why nothing more was deleted; None if all went well.
        note: A remark for a person.

    """

    what: str
    files: int = 0
    rows: int = 0
    problem: str | None = None
    note: str | None = None

    def line(self) -> str:
        if self.problem:
            return f"{self.what}: not done: {self.problem}"
        rows = f"{self.rows:,} rows, " if self.rows else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.what}: {rows}{self.files:,} files{note}"


def maintain(settings: Settings, as_of: datetime) -> list[Cleanup]:
    """Delete rows and files that have expired at `as_of`; a part that fails says why.

    Raises:
        DataError: Another maintenance, or a backup, goes on.

    """
    names = [*TIME_COLUMNS]
    cleanups: list[Cleanup] = []
    with one_writer(settings, "maintain"):
        try:
            names += table_names(settings)
        except Exception as exc:  # noqa: BLE001  (S3 does not answer, or whatever it is)
            cleanups.append(Cleanup(what="list of tables", problem=in_one_line(exc)))
        tables = [
            GrowingPlace(name, partial(clean_table, name, TIME_COLUMNS.get(name)))
            for name in dict.fromkeys(names)
        ]
        cleanups += [
            _clean(place, settings, as_of) for place in (*tables, *GROWING_PLACES)
        ]
    return cleanups


def _clean(place: GrowingPlace, settings: Settings, as_of: datetime) -> Cleanup:
    """Clean a place; an error becomes the problem of the result, so that others are cleaned."""
    note = None
    age = timedelta(days=place.days)
    try:
        if place.name in settings.keep_days:
            age = timedelta(days=settings.keep_days[place.name])
        if place.name == "predictions":
            least_age = judged_age(settings)
            if age < least_age:
                note = f"kept for {least_age.days} days, not {age.days}, until labels mature"
                age = least_age
        rows, files = place.clean(settings, as_of - age)
    except Exception as exc:  # noqa: BLE001  (see above)
        return Cleanup(what=place.name, problem=in_one_line(exc))
    return Cleanup(what=place.name, rows=rows, files=files, note=note)


def judged_age(settings: Settings) -> timedelta:
    """Return how long predictions have to stay until each can be judged.

    Raises:
        SettingsError: A spec is broken, or its dataset lacks its label.

    """
    problems = broken_specs()
    longest_wait = timedelta()
    for spec in load_specs():
        try:
            label = label_source(settings, spec).label
            longest_wait = max(longest_wait, label.horizon + label.lateness)
        except DataError as exc:
            problems.append(str(exc))
    if problems:
        raise SettingsError(f"left as it is: labels are unknown: {'; '.join(problems)}")
    return longest_wait + LEAST_AGE_OF_JUDGED
