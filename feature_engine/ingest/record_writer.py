"""Writes the record of a dataset at the end of an ingest."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from feast import FeatureStore
from sqlglot.expressions import convert

from core.files import replace_file
from core.settings import Settings
from core.tables.query import quoted
from core.tables.table import Table
from feature_engine.engines.duckdb_engine import duckdb_connection
from feature_engine.ingest.quarantine import quarantine_table
from feature_engine.ingest.record import (
    DAYS,
    RECORD,
    SHOWN_INGESTS,
    DatasetRecord,
    IngestReport,
    record_file,
)
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import unbuilt_views
from feature_repo.definition import Dataset
from feature_repo.published.service import service_names

COUNTS = """
SELECT {group}, count(*) FROM read_parquet($files)
WHERE {time} BETWEEN $since AND $until GROUP BY ALL ORDER BY ALL"""


def write_record(
    settings: Settings,
    dataset: Dataset,
    last_record: DatasetRecord,
    store: FeatureStore,
    report: IngestReport,
) -> None:
    """Write the record of a dataset.

    Args:
        settings: Settings of the installation.
        dataset: The dataset that was ingested.
        last_record: The dataset's record of the ingest before.
        store: Feast's store.
        report: The report of the ingest.

    """
    store.refresh_registry()  # a `feast apply` may have come meanwhile
    as_of = report.as_of
    watermark = last_record.watermark
    raw = raw_table(settings, dataset)
    aside = quarantine_table(settings, dataset)
    event_time = quoted(dataset.event_time)
    column = dataset.event_time.replace("~", "~0").replace("/", "~1")
    pointer = convert(f"/{column}").sql()
    row_time = f"try_cast(row->>{pointer} AS TIMESTAMPTZ)"
    time_aside = f"least({row_time}, quarantined_at)"
    is_late = f"ingested_at = '{as_of}' AND {event_time} < '{watermark or as_of}'"
    late_count = _counts(raw, is_late, "ingested_at", as_of).get(True, 0)
    if report.passed:
        watermark = max(as_of, watermark or as_of)
    ingest = replace(report, warnings=(), late=late_count)
    record = DatasetRecord(
        dataset=dataset.name,
        as_of=as_of,
        faults=[*unbuilt_views(settings, dataset, store.list_feature_views())],
        watermark=watermark,
        newest=raw.newest(dataset.event_time),
        silence=dataset.silence,
        services=service_names(settings, dataset, store),
        views=[*dataset.views],
        rows=_counts(raw, f"{event_time}::DATE", event_time, as_of),
        quarantined=_counts(aside, "rules", time_aside, as_of),
        passed=report.passed,
        remark="; ".join(report.warnings),
        ingests=[ingest, *last_record.ingests][:SHOWN_INGESTS],
    )
    content = RECORD.dump_json(record)
    replace_file(record_file(settings, dataset.name), content)


def _counts(table: Table, group: str, time: str, as_of: datetime) -> dict[Any, int]:
    """Count the rows of the last days by `group`; `group` and `time` are SQL."""
    files = table.files()
    if not files:
        return {}
    query = COUNTS.format(group=group, time=time)
    parameters = {
        "files": files,
        "since": as_of - timedelta(days=DAYS),
        "until": as_of,
    }
    with duckdb_connection() as connection:
        return dict(connection.raw_sql(query, parameters=parameters).fetchall())
