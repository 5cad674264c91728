"""`gyre maintain`: everything that grows is kept in bounds. Every part may be killed."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from core.locks import one_writer
from core.settings import Settings
from core.spec import load_specs
from core.user_code import in_one_line
from monitoring.places import PLACES, Place, judged_age, table_place


@dataclass(frozen=True, kw_only=True)
class Cleanup:
    """What went of a place: rows and files; or the problem. note: what else to know."""

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
    with one_writer(settings, "maintain"):
        try:
            places = _places(settings)
            cleanups = []
        except Exception as exc:  # noqa: BLE001  (S3 does not answer, or whatever it is)
            places = [*PLACES]
            cleanups = [Cleanup(what="list of tables", problem=in_one_line(exc))]
        results = [_clean(place, settings, as_of) for place in places]
    return [*cleanups, *filter(None, results)]


def _places(settings: Settings) -> list[Place]:
    """Return the places of the table, and one for each other table of the data."""
    names = {place.name for place in PLACES}
    logs = settings.data.glob("**/_delta_log")
    tables = sorted(log.parent.relative_to(settings.data).as_posix() for log in logs)
    return [*PLACES, *[table_place(name) for name in tables if name not in names]]


def _clean(place: Place, settings: Settings, as_of: datetime) -> Cleanup | None:
    """Clean a place; whatever goes wrong keeps no other from being cleaned."""
    if place.clean is None:
        return None
    age = place.age
    note = None
    try:
        if place.name in settings.keep_days:
            age = timedelta(days=settings.keep_days[place.name])
        if place.name == "predictions":
            least_age = judged_age(load_specs())
            if age < least_age:
                note = f"kept for {least_age.days} days, not {age.days}, until labels mature"
                age = least_age
        rows, files = place.clean(settings, as_of - age)
    except Exception as exc:  # noqa: BLE001  (see above)
        return Cleanup(what=place.name, problem=in_one_line(exc))
    return Cleanup(what=place.name, rows=rows, files=files, note=note)
