"""What the console shows of a dataset, as its last ingest left it; read without Feast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from core.errors import DataError
from core.files import reached, read_file, replace_file

if TYPE_CHECKING:
    from upath import UPath

    from core.settings import Settings
    from core.storage import Table
    from feature_repo.definition import Dataset

DAYS = 60
ROWS = """
SELECT {time}::DATE, count(*) FROM read_parquet($files)
WHERE {time} BETWEEN $since AND $until GROUP BY ALL ORDER BY ALL"""
QUARANTINED = """
SELECT rules, count(*) FROM read_parquet($files) WHERE quarantined_at BETWEEN $since AND $until
AND coalesce(try_cast(row->>'$.{time}' AS TIMESTAMPTZ), $until) >= $since
GROUP BY ALL ORDER BY ALL"""
"""The first ingest sets aside what was wrong for years: that says nothing of these days."""


@dataclass(frozen=True)
class DatasetSummary:
    """Times are aware UTC.

    rows: by the day of their event time, of the last `DAYS` days; a day without rows has none.
    quarantined: rows of these days that were set aside, by the rules they broke, each row once.
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


def record_summary(settings: Settings, dataset: Dataset, at: datetime, **validation: Any) -> None:
    """Leave the summary of `dataset` as of `at` for readers without Feast.

    validation: `validated`, `passed`, `remark`; without, those of the last batch, let in or gone.
    """
    from feature_repo.engines import connected  # noqa: PLC0415  (the console does without Feast)
    from feature_repo.features import raw_table  # noqa: PLC0415
    from feature_repo.quarantine import quarantine_table  # noqa: PLC0415

    try:
        last = recorded_summary(settings, dataset.name)
    except DataError:
        last = DatasetSummary(dataset.name, at, {}, {})
    if not last.passed:
        last = replace(last, passed=True, remark="")
    since = datetime.combine(at.date() - timedelta(days=DAYS - 1), time(), UTC)
    raw, aside = raw_table(settings, dataset), quarantine_table(settings, dataset)
    of_event = f'"{dataset.event_time}"'
    with connected() as connection:

        def counts(table: Table, query: str, column: str) -> dict[Any, int]:
            if not (files := table.files(within=f"{column} >= '{since}'")):
                return {}
            values = {"files": files, "since": since, "until": at}
            found = connection.raw_sql(query.format(time=of_event), parameters=values)
            return dict(found.fetchall())

        rows, rules = counts(raw, ROWS, of_event), counts(aside, QUARANTINED, "quarantined_at")
    last = replace(last, at=at, rows=rows, quarantined=rules, **validation)
    replace_file(_recorded_at(settings, dataset.name), SUMMARY.dump_json(last))


def _recorded_at(settings: Settings, name: str) -> UPath:
    return settings.reports / "datasets" / f"{name}.json"
