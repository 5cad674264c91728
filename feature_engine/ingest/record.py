"""The record of a dataset: the results of its last ingests, for the console and for monitoring.

It is JSON below `settings.reports`. The ingest writes it (`record_writer`), and whoever reads it
needs no Feast.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from pydantic import TypeAdapter
from upath import UPath

from core.errors import DataError
from core.files import read_file, read_if_present
from core.settings import Settings
from core.user_code import dataset_names

HOUR = timedelta(hours=1)
DAYS = 60
"""Days of which a record counts the rows."""
SHOWN_INGESTS = 30
"""Ingests that a record has; the ingest runs every 20 minutes: of ten hours."""


@dataclass(frozen=True)
class IngestReport:
    """Numbers of rows that an ingest handled in each way, and the table's version afterwards.

    Attributes:
        dataset: Name of the dataset.
        as_of: The moment that the ingest brought the dataset to, aware UTC.
        inserted: Rows of new keys.
        replaced: Rows with other content for a key of the table.
        quarantined: Rows that were set aside.
        ahead: Rows dated after `as_of`, which are left for a later ingest.
        table_version: Version of the raw table.
        warnings: Warnings about the rows, or the reason why they were rejected.
        passed: Whether the rows were let in.
        late: Rows, new or with other content, of an event time before the last watermark.
        behind: Keys of which the source has said another row than the one that counts, for longer
            than the dataset's `lag`.

    """

    dataset: str
    as_of: datetime
    inserted: int = 0
    replaced: int = 0
    quarantined: int = 0
    ahead: int = 0
    table_version: int = -1
    warnings: tuple[str, ...] = ()
    passed: bool = True
    late: int = 0
    behind: int = 0

    def summary(self) -> str:
        moment = f"{self.as_of:%Y-%m-%d %H:%M} UTC"
        counts = f"{self.inserted} new, {self.replaced} corrected, {self.quarantined} quarantined"
        texts = [f"{self.dataset} as of {moment}: {counts}"]
        if self.ahead:
            texts.append(
                f"rows dated after {moment}, which stay for a later run: {self.ahead}"
            )
        if self.behind:
            texts.append(
                f"keys of which the source still says what an event has changed: {self.behind} (to "
                f"let it win: gyre ingest {self.dataset} --source-wins)"
            )
        texts.append(f"table version {self.table_version}")
        return "; ".join((*texts, *self.warnings))


@dataclass(frozen=True)
class DatasetRecord:
    """The record of one dataset; times are aware UTC.

    All attributes but the name are empty before the first ingest.

    Attributes:
        dataset: Name of the dataset.
        as_of: Time of the ingest.
        faults: Messages about published views whose values were not computed since, or about a
            record that cannot be read.
        watermark: Time up to which the source was read and its features are online.
        newest: Event time of the newest row.
        silence: Time for which the source may have no new row.
        services: Names of the feature services that read a view of the dataset.
        views: Names of the dataset's feature views.
        rows: Number of rows by the day of their event time, for the last `DAYS` days; a day without
            rows is left out.
        quarantined: Number of rows of these days that were set aside, by the rules that they broke.
            A row without a time counts for the day on which it was set aside.
        passed: Whether the rows of the ingest were let in.
        remark: The reason why they were not, or warnings.
        ingests: The last ingests, the newest first, without their warnings, which may quote rows.

    """

    dataset: str
    as_of: datetime | None = None
    faults: Sequence[str] = ()
    watermark: datetime | None = None
    newest: datetime | None = None
    silence: timedelta = timedelta()
    services: Sequence[str] = ()
    views: Sequence[str] = ()
    rows: dict[date, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    passed: bool = True
    remark: str = ""
    ingests: Sequence[IngestReport] = ()

    @property
    def behind(self) -> int:
        """Keys that the source says otherwise for too long, by the newest ingest that passed."""
        return next((ingest.behind for ingest in self.ingests if ingest.passed), 0)

    def problems(self, now: datetime, age_limit: timedelta) -> list[tuple[str, str]]:
        """Return the problems of the dataset at `now`: its faults, and times that are too old.

        Args:
            now: Aware UTC.
            age_limit: Greatest age of the features, by the spec of a model that reads them.

        Returns:
            The cause of each problem, a text that stays the same while it lasts, and its message.

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


def read_rules(settings: Settings, name: str) -> Any:
    """Return the results by rule of the batch that the Data Docs show.

    Returns:
        `as_of`: the moment of the ingest; `rows`: their number; `rules`: see `Validation.results`.

    Raises:
        FileNotFoundError: No rows were validated yet.

    """
    return json.loads(read_file(settings.data_docs / name / "index.json"))


def read_record(settings: Settings, name: str) -> DatasetRecord:
    """Read the record of a dataset; a record that cannot be read becomes a fault of the dataset."""
    file = record_file(settings, name)
    try:
        content = read_if_present(file)
        return DatasetRecord(name) if content is None else RECORD.validate_json(content)
    except (DataError, ValueError) as exc:
        reason = " ".join(str(exc).split())
        fault = f"{name}: its record cannot be read; run: gyre ingest {name} ({reason})"
        return DatasetRecord(name, faults=[fault])


def service_records(
    settings: Settings, names: Sequence[str], service: str
) -> list[DatasetRecord]:
    """Read the records of datasets, and of datasets that they import and `service` reads.

    A record without an ingest has no services, and is among them.
    """
    records = [read_record(settings, dataset) for dataset in dataset_names(*names)]
    return [
        record
        for record in records
        if record.dataset in names or record.as_of is None or service in record.services
    ]
