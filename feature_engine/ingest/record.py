"""The record of a dataset: the results of its last ingest, for the console and for monitoring.

It is JSON below `settings.reports`. The ingest writes it (`record_writer`), and whoever reads it
needs no Feast.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from pydantic import TypeAdapter
from upath import UPath

from core.errors import DataError
from core.files import reached, read_file
from core.settings import Settings
from core.user_code import dataset_names

HOUR = timedelta(hours=1)
DAYS = 60
"""Days of which a record counts the rows."""


@dataclass(frozen=True)
class DatasetRecord:
    """One dataset; times are aware UTC. All but the name is empty before the first ingest.

    as_of: of the ingest.
    faults: views that were published and whose values were not computed since, in words; or that
    the record itself cannot be read.
    watermark: up to when the source was read and its features are online.
    newest: event time of the newest row. silence: how long the source may have none.
    services: the feature services that read one of its views.
    rows: by the day of their event time, of the last `DAYS` days; a day without rows has none.
    quarantined: rows of these days that were set aside, by the rules they broke. A row without a
    time is of the day on which it was set aside.
    delivery_rules: the rules that events do not pass.
    passed: whether the rows of the ingest were let in. remark: why not, or the warnings.
    """

    dataset: str
    as_of: datetime | None = None
    faults: Sequence[str] = ()
    watermark: datetime | None = None
    newest: datetime | None = None
    silence: timedelta = timedelta()
    services: Sequence[str] = ()
    rows: dict[date, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    delivery_rules: Sequence[str] = ()
    passed: bool = True
    remark: str = ""

    def problems(self, now: datetime, age_limit: timedelta) -> list[tuple[str, str]]:
        """Say what is wrong or too old at `now`.

        Args:
            now: Aware UTC.
            age_limit: How old the features may be, by the spec of a model that reads them.

        Returns:
            For each problem its cause, the same for as long as it lasts, and the whole text.

        """
        problems = [(fault, fault) for fault in self.faults]
        ages = (
            ("features are not complete", self.watermark, age_limit),
            ("source is silent", self.newest, self.silence),
        )
        for complaint, moment, limit in ages:
            if moment is not None and now - moment > limit:
                cause = f"{self.dataset}: {complaint}"
                since = f"since {moment:%Y-%m-%d %H:%M} UTC"
                age_hours = round((now - moment) / HOUR, 1)
                text = (
                    f"{cause} {since}: {age_hours:g} h, at most {limit / HOUR:g} h are "
                    "expected"
                )
                problems.append((cause, text))
        return problems


RECORD = TypeAdapter(DatasetRecord)


def record_file(settings: Settings, name: str) -> UPath:
    return settings.reports / "datasets" / f"{name}.json"


def read_record(settings: Settings, name: str) -> DatasetRecord:
    """Read the record of a dataset; that it cannot be read is a fault of this dataset alone."""
    file = record_file(settings, name)
    try:
        with reached("its record"):
            if not file.exists():
                return DatasetRecord(name)
            return RECORD.validate_json(read_file(file))
    except (DataError, ValueError) as exc:
        reason = " ".join(str(exc).split())
        fault = f"{name}: its record cannot be read; run: gyre ingest {name} ({reason})"
        return DatasetRecord(name, faults=[fault])


def service_records(settings: Settings, name: str, service: str) -> list[DatasetRecord]:
    """Read the records of dataset `name` and of those it imports whose views `service` reads.

    A record without an ingest does not say who reads its views, and is among them.
    """
    records = [read_record(settings, dataset) for dataset in dataset_names(name)]
    return [
        record
        for record in records
        if record.dataset == name or record.as_of is None or service in record.services
    ]
