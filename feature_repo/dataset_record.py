"""The record of a dataset: what its last ingest left for the console and for monitoring.

It is JSON below `settings.reports`, written with Feast and read without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from core.errors import DataError
from core.files import reached, read_file, replace_file
from core.user_code import dataset_names

if TYPE_CHECKING:
    from upath import UPath

    from core.settings import Settings
    from core.storage import Table
    from feature_repo.definition import Dataset

FEATURE_AGE_LIMIT = timedelta(hours=2)
"""Ingest is hourly, so features are complete up to an hour ago: the promise, and once missed."""
HOUR = timedelta(hours=1)
DAYS = 60
ROWS_BY_DAY = """
SELECT {time}::DATE, count(*) FROM read_parquet($files)
WHERE {time} BETWEEN $since AND $until GROUP BY ALL ORDER BY ALL"""
ROWS_BY_RULES = """
SELECT rules, count(*) FROM read_parquet($files) WHERE quarantined_at BETWEEN $since AND $until
AND coalesce(try_cast(row->>'$.{time}' AS TIMESTAMPTZ), $until) >= $since
GROUP BY ALL ORDER BY ALL"""
"""Without rows of earlier times: the first ingest sets aside what was wrong for years."""


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
    quarantined: rows of these days that were set aside, by the rules they broke.
    delivery_rules: the rules that events do not pass.
    validated: when rows were last held against the rules. passed: whether they were let in.
    remark: why not, or the warnings.
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
    validated: datetime | None = None
    passed: bool = True
    remark: str = ""

    def problems(
        self, now: datetime, age_limit: timedelta = FEATURE_AGE_LIMIT
    ) -> list[tuple[str, str]]:
        """Say what is wrong or too old at `now`.

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
                since = f"since {moment:%Y-%m-%d %H:%M} UTC: {(now - moment) / HOUR:.0f} h"
                text = f"{cause} {since}, at most {limit / HOUR:.0f} h are expected"
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


def write_record(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
    remark: str | None = None,
    *,
    passed: bool = True,
) -> None:
    """Write the record of a dataset at the end of an ingest.

    Args:
        settings: Of the installation.
        dataset: Whose record it is.
        as_of: The moment that the ingest brought the dataset to.
        remark: Warnings about the rows that were validated, or why they were stopped; None if no
            row was new. Then the last validation stands, unless it stopped rows.
        passed: Whether the rows were let in.

    """
    from feature_repo.features import raw_table  # noqa: PLC0415  (the console does without Feast)
    from feature_repo.quarantine import quarantine_table  # noqa: PLC0415
    from feature_repo.service import service_names, unbuilt_views  # noqa: PLC0415
    from feature_repo.validation import delivery_rules  # noqa: PLC0415

    record = read_record(settings, dataset.name)
    if remark is not None:
        record = replace(record, validated=as_of, passed=passed, remark=remark)
    elif not record.passed:
        record = replace(record, passed=True, remark="")
    raw = raw_table(settings, dataset)
    aside = quarantine_table(settings, dataset)
    time = f'"{dataset.event_time}"'
    rows_by_day = ROWS_BY_DAY.format(time=time)
    rows_by_rules = ROWS_BY_RULES.format(time=time)
    record = replace(
        record,
        as_of=as_of,
        faults=unbuilt_views(settings, dataset),
        watermark=max(as_of, record.watermark or as_of) if passed else record.watermark,
        newest=raw.newest(dataset.event_time),
        silence=dataset.silence,
        services=service_names(settings, dataset),
        rows=_counts(raw, time, rows_by_day, as_of),
        quarantined=_counts(aside, "quarantined_at", rows_by_rules, as_of),
        delivery_rules=delivery_rules(dataset),
    )
    content = RECORD.dump_json(record)
    replace_file(record_file(settings, dataset.name), content)


def _counts(table: Table, time: str, query: str, as_of: datetime) -> dict[Any, int]:
    """Count the rows of the last days by what `query` groups them by."""
    from feature_repo.engines import connected  # noqa: PLC0415

    since = as_of - timedelta(days=DAYS)
    files = table.files(within=f"{time} >= '{since}'")
    if not files:
        return {}
    with connected() as connection:
        parameters = {"files": files, "since": since, "until": as_of}
        return dict(connection.raw_sql(query, parameters=parameters).fetchall())
