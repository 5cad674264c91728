"""What the console shows of a dataset, as its last ingest left it; read without Feast."""

from dataclasses import dataclass
from datetime import date, datetime

from pydantic import TypeAdapter
from upath import UPath

from core.errors import DataError
from core.files import reached, read_file
from core.settings import Settings

DAYS = 60


@dataclass(frozen=True)
class DatasetSummary:
    """Times are aware UTC.

    rows: by the day of their event time, of the last `DAYS` days; a day without rows has none.
    quarantined: rows set aside in the last `DAYS` days, by the rules they broke.
    validated: when rows were last held against the rules; None: never. passed: whether the batch
    was let in. remark: why not, or the warnings; empty if there is nothing to say.
    """

    dataset: str
    at: datetime
    rows: dict[date, int]
    quarantined: dict[str, int]
    validated: datetime | None = None
    passed: bool = True
    remark: str = ""


SUMMARY = TypeAdapter(DatasetSummary)


def recorded_summary(settings: Settings, name: str) -> DatasetSummary:
    """Return the summary of dataset `name`; DataError where no ingest of it has ended."""
    try:
        with reached("its summary"):
            return SUMMARY.validate_json(read_file(_recorded_at(settings, name)))
    except (DataError, ValueError) as exc:
        raise DataError(f"no ingest of {name} has ended yet: gyre ingest {name} ({exc})") from exc


def _recorded_at(settings: Settings, name: str) -> UPath:
    return settings.reports / "datasets" / f"{name}.json"
