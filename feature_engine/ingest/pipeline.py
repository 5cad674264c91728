"""Ingest: rows that are due at the source become rows of tables, features and online values.

pull → validate → quarantine and merge → views → online. Each step can be repeated: rows are merged
by key, a view changes in one commit, and the values online follow from both. Events land without
ingest (feature_engine/ingest/consumer.py), also while it is under way.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from core.errors import BatchRejectedError, DataError, RegistryError, UncomputableError
from core.locks import INGEST_LOCK, one_writer
from core.settings import Settings
from core.spec import ModelSpec
from core.tables.table import Table
from core.temporary import temporary_installation
from feature_engine.events.broker import broker_time, may_events_wait
from feature_engine.ingest.landing import DeliveryOrder, land, stop_if_many
from feature_engine.ingest.quarantine import heal
from feature_engine.ingest.record import DatasetRecord, IngestReport, read_record
from feature_engine.ingest.record_writer import write_record
from feature_engine.ingest.source import has_source, pull
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import write_views
from feature_engine.online.refresh import (
    notice_materialization_by_hand,
    record_intervals,
    refresh_online,
)
from feature_engine.online.values import OnlineValues
from feature_repo.datasets import load_dataset
from feature_repo.definition import Dataset
from feature_repo.published.definition_check import check_definitions
from feature_repo.published.service import PublishedService
from feature_repo.published.store import open_store, publish_beside

logger = logging.getLogger(__name__)
FAR_FUTURE = datetime(9999, 1, 1, tzinfo=UTC)


def ingest(
    settings: Settings,
    name: str,
    as_of: datetime,
    *,
    full: bool = False,
    topic_from: datetime | None = None,
    source_wins: bool = False,
    began: datetime | None = None,
) -> IngestReport:
    """Bring a dataset up to date.

    Where a topic alone has its rows, the first ingest reads them all. Later the consumer does.

    Args:
        settings: Settings of the installation.
        name: Name of the dataset.
        as_of: Aware UTC, up to when the source is read.
        full: Read all of the source, not only its newest rows, as the first ingest of a day (UTC)
            does: it finds rows that were corrected before the look-back. Write every value online
            again, as the store may have lost some. Rows of the table that views cannot be computed
            from go to quarantine.
        topic_from: Read the records of the topic from this time on, and not the source.
        source_wins: Read all of the source, and let each row count, whatever events have said.
        began: When the reading began, by the clock that dates events; by default now.

    Raises:
        BatchRejectedError: The batch broke a rule as a whole; tables and features are as before.
        DefinitionChangedError: See `catch_up`; the rows are in the table.
        UncomputableError: See `write_views`; the rows are in the table.
        DataError: Source or table cannot be read or written, or another ingest goes on.

    """
    dataset = load_dataset(name)
    full = full or source_wins
    with one_writer(settings, INGEST_LOCK.format(name)):
        began = began or broker_time(settings)
        order = DeliveryOrder(
            began=began,
            may_events_come_late=partial(may_events_wait, settings, name, began),
            source_wins=source_wins,
            is_of_topic_alone=not has_source(settings, dataset),
            are_records=bool(topic_from) and has_source(settings, dataset),
        )
        raw = raw_table(settings, dataset)
        last_record = read_record(settings, name)
        record = partial(write_record, settings, dataset, last_record)
        since = None if full else _read_from(dataset, raw, last_record, as_of)
        origin = settings
        rows_of = dataset
        if topic_from:
            if dataset.topic is None:
                remedy = f"name it in feature_repo/datasets/{name}.py: topic=Topic(…)"
                raise DataError(f"{name}: --topic-from needs a topic: {remedy}")
            since = topic_from
            origin = settings.model_copy(update={"sources": {}})
            rows_of = replace(dataset, shipped=None)
        report = IngestReport(dataset=name, as_of=as_of, table_version=raw.version)
        is_first = full or not raw.exists
        try:
            if topic_from or is_first or has_source(settings, dataset):
                unreadable: dict[str, str] = {}
                delivery = pull(
                    origin,
                    rows_of,
                    as_of,
                    since,
                    unreadable,
                    are_times_needed=order.are_records,
                )
                report = land(origin, rows_of, delivery, as_of, unreadable, order)
        except BatchRejectedError as exc:
            report = replace(report, passed=False, warnings=(str(exc),))
            record(open_store(settings), report)
            raise
        with closing(OnlineValues(settings, dataset, raw)) as online:
            report = _catch_up_and_heal(online, report, as_of, full=full)
            record(online.store, report)
    return report


@contextmanager
def whole_history(
    settings: Settings,
    spec: ModelSpec,
    as_of: datetime,
    part: Callable[[Dataset, pa.Table], pa.Table] = lambda _dataset, rows: rows,
) -> Iterator[tuple[Settings, datetime]]:
    """Give settings of a temporary installation with all rows of the model's sources.

    The days of the shipped file that lie ahead are included; another source gives the rows that it
    holds at `as_of`. Nothing goes online. A row counts as known from its event time on: a source
    does not tell when it came.

    Args:
        settings: Settings of the installation.
        spec: Spec of the model.
        as_of: Aware UTC.
        part: Chooses the rows to go on with; called with the label's dataset first.

    Yields:
        The settings, and the time of the last event of the label's dataset.

    Raises:
        DataError: The source cannot be read, or its rows broke a rule as a whole.

    """
    label = load_dataset(str(spec.dataset))
    with temporary_installation(settings, "history") as history:
        publish_beside(history, label)
        service = PublishedService(history, spec.feature_service)
        for dataset in ({label.name: label} | service.datasets()).values():
            unreadable: dict[str, str] = {}
            delivery = pull(settings, dataset, FAR_FUTURE, unreadable=unreadable)
            all_rows = delivery.read_all()
            stop_if_many(settings, dataset, unreadable, all_rows.num_rows)
            rows = part(dataset, all_rows)
            until = as_of
            if dataset.shipped and dataset.source_name not in settings.sources:
                until = pc.max(rows[dataset.event_time]).as_py()
            report = land(history, dataset, rows.to_reader(), until)
            for warning in report.warnings:
                logger.warning("%s: %s", dataset.name, warning)
            write_views(history, dataset, raw_table(history, dataset))
        yield history, raw_table(history, label).newest(label.event_time) or as_of


def catch_up(online: OnlineValues, as_of: datetime, *, full: bool = False) -> None:
    """Bring views and online store to the rows that the raw table holds.

    It works from the tables, not from a batch: a run that was killed may have landed rows before.

    Raises:
        DefinitionChangedError: The code would change the values that a version in a role is
            served; the values of the views and the values online stay.

    """
    try:
        check_definitions(online.settings, online.dataset, as_of, online.store)
    except RegistryError as exc:
        if online.redefined_views():
            raise
        logger.warning("%s: definitions are not compared: %s", online.dataset.name, exc)
    write_views(online.settings, online.dataset, online.raw)
    notice_materialization_by_hand(online)
    refresh_online(online, clock=lambda: max(as_of, datetime.now(UTC)), full=full)
    record_intervals(online)


def _catch_up_and_heal(
    online: OnlineValues, report: IngestReport, as_of: datetime, *, full: bool
) -> IngestReport:
    """Bring views and online store up to date; `full` allows to move rows to quarantine for that.

    Returns:
        The report, with the rows that were moved.

    """
    try:
        catch_up(online, as_of, full=full)
    except UncomputableError:
        moved_count = heal(online.settings, online.dataset, as_of) if full else 0
        if not moved_count:
            raise
        report = replace(
            report,
            quarantined=report.quarantined + moved_count,
            table_version=online.raw.version,
        )
        catch_up(online, as_of, full=full)
    return report


def _read_from(
    dataset: Dataset, raw: Table, last_record: DatasetRecord, as_of: datetime
) -> datetime | None:
    """Return the event time from which on the source is read; None: all of it."""
    newest = raw.newest(dataset.event_time)
    watermark = last_record.watermark
    if newest is None or watermark is None or watermark.date() < as_of.date():
        return None
    # An event may be newer than rows that the source did not hold, or that were not due, then.
    return min(newest, as_of, watermark) - dataset.look_back
