"""Ingest: what is due at the source becomes tables, feature rows and online values.

pull → validate → quarantine and merge → features → materialise. Each step can be repeated: rows
are merged by key, the feature file is switched when complete, online writes are the same again.
Events land without it (feature_repo/consumer.py), also while it is under way.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import ibis
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from core.errors import BatchRejectedError
from core.files import read_file, replace_file
from core.locks import one_writer
from core.settings import Settings
from core.spec import ModelSpec
from core.storage import Table
from core.temporary import temporary_installation
from feature_repo.dataset_summary import record_summary
from feature_repo.datasets import load_dataset
from feature_repo.definition import Dataset
from feature_repo.definition_check import check_definitions
from feature_repo.engines import connected
from feature_repo.entities import EntityFeatures, last_of_key
from feature_repo.features import (
    TIME,
    forget_online,
    news,
    note_online,
    open_raw,
    raw_table,
    redefined,
    write_views,
)
from feature_repo.forgotten import forgotten_file
from feature_repo.freshness import record_freshness
from feature_repo.quarantine import as_json, quarantine, quarantine_table
from feature_repo.source import place, pull, shift_file
from feature_repo.store import FeatureStore, publish_beside
from feature_repo.validation import validate

MANY = 5_000
"""Rows that came late or went, from which writing every entity anew is cheaper."""
FAR = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class IngestReport:
    """Rows, by what became of them, and the table's version afterwards."""

    dataset: str
    as_of: datetime
    inserted: int = 0
    replaced: int = 0
    quarantined: int = 0
    table_version: int = -1
    warnings: tuple[str, ...] = ()

    def summary(self) -> str:
        what = f"{self.inserted} new, {self.replaced} corrected, {self.quarantined} quarantined"
        head = f"{self.dataset} as of {self.as_of:%Y-%m-%d %H:%M} UTC: {what}"
        return "; ".join((head, f"table version {self.table_version}", *self.warnings))


def ingest(settings: Settings, name: str, as_of: datetime, *, full: bool = False) -> IngestReport:
    """Bring dataset `name` to `as_of`.

    full: read all of the source, not only its newest rows, as the first ingest of a day (UTC) does:
    it finds what was corrected before the look-back.

    Raises:
        BatchRejectedError: the batch broke a rule as a whole; tables and features are as before.
        DefinitionChangedError: see `catch_up`; the rows are in the table.
        DataError: source or table cannot be read or written, or another ingest goes on.

    """
    dataset = load_dataset(name)
    with one_writer(settings, name):
        table, store = raw_table(settings, dataset), FeatureStore(settings)
        since = None if full else _read_from(table, store, dataset, as_of)
        delivered = pull(settings, dataset, as_of, since)
        newest = last_of_key(delivered, dataset.key)
        try:
            report = _land(settings, dataset, newest, as_of, settings.reports)
        except BatchRejectedError as exc:
            record_summary(settings, dataset, as_of, validated=as_of, passed=False, remark=f"{exc}")
            raise
        if not delivered.num_rows:
            silent = f"{place(settings, dataset)} delivered no rows"
            report = replace(report, warnings=(silent, *report.warnings))
        catch_up(settings, dataset, store, table, as_of)
        record_freshness(settings, name)
        batch = {"validated": as_of, "passed": True, "remark": "; ".join(report.warnings)}
        is_new = report.inserted or report.replaced or report.quarantined
        record_summary(settings, dataset, as_of, **batch if is_new else {})
    return report


@contextmanager
def whole_history(
    settings: Settings,
    spec: ModelSpec,
    as_of: datetime,
    part: Callable[[Dataset, pa.Table], pa.Table] = lambda _dataset, rows: rows,
) -> Iterator[tuple[Settings, datetime]]:
    """Give settings of a temporary installation with all that the model's sources hold.

    And the last event of the label's. Of the shipped file the days that lie ahead too; of any other
    source what it holds at `as_of`. Nothing goes online. part: chooses the rows to go on with, of
    the label's dataset first.
    A row counts as known from its event time on: a source does not say when it came.

    Raises:
        DataError: the source cannot be read, or its rows broke a rule as a whole.

    """
    label = load_dataset(spec.dataset)
    shipped = label.name not in settings.sources
    with temporary_installation(settings, "history") as beside:
        for file in (shift_file, forgotten_file):
            if file(settings).exists():
                replace_file(file(beside), read_file(file(settings)))
        publish_beside(beside, label)
        for dataset in FeatureStore(beside).datasets(spec.feature_service, label.name):
            ahead = dataset.name not in settings.sources
            rows = part(dataset, pull(beside, dataset, FAR if ahead else as_of))
            until = pc.max(rows[dataset.event_time]).as_py() if ahead else as_of
            _land(beside, dataset, last_of_key(rows, dataset.key), until)
            write_views(beside, dataset, raw_table(beside, dataset))
        newest = raw_table(beside, label).newest(label.event_time)
        yield beside, (newest or as_of) if shipped else min(as_of, newest or as_of)


def catch_up(
    settings: Settings, dataset: Dataset, store: FeatureStore, table: Table, as_of: datetime
) -> None:
    """Bring views and online store to what the table holds.

    From the tables, not from a batch: a run that was killed may have landed rows before. What went
    or was late says nothing of itself at a later time, so its entities are brought online anew.

    Raises:
        DefinitionChangedError: the code would change what a version in a role is served; the
            values of the views and those online stay.

    """
    accepted = settings.data / "features" / f"{dataset.name}.definitions"
    published = store.definitions(dataset)
    is_accepted = accepted.exists() and read_file(accepted).decode() == published
    if not is_accepted or redefined(settings, dataset, table):
        check_definitions(settings, dataset, as_of)
    with closing(EntityFeatures(settings, dataset, table)) as online:
        with online.turn():
            pass  # events whose values were computed without the rows landed here are online now
        write_views(settings, dataset, table)
        changed, last = news(settings, dataset, table), store.watermark(dataset)
        if changed is not None and last is not None:
            changed = changed.filter(pc.field("gone") | (pc.field(dataset.event_time) <= last))
        if changed is None or changed.num_rows > MANY:
            forget_online(settings, dataset)
            store.materialise(dataset, as_of, rewrite=True)
        else:
            store.materialise(dataset, as_of)
            online.bring_online(changed.to_pylist(), as_of)
        note_online(settings, dataset)
        meanwhile = news(settings, dataset, table)
        if meanwhile is not None:  # events whose values were online before those of the views
            online.bring_online(meanwhile.to_pylist(), as_of)
    replace_file(accepted, published)


def _read_from(
    table: Table, store: FeatureStore, dataset: Dataset, as_of: datetime
) -> datetime | None:
    """From which event time on the source is read; None: all of it."""
    newest, last = table.newest(dataset.event_time), store.watermark(dataset)
    if newest is None or last is None or last.date() < as_of.date():
        return None
    return min(newest, as_of) - dataset.look_back


def _unknown_rows(settings: Settings, rows: pa.Table, table: Table, dataset: Dataset) -> pa.Table:
    """Rows whose content neither the table nor quarantine holds: new keys and corrections.

    What an event superseded was delivered before: it is none.
    """
    if not (table.exists and rows.num_rows):
        return rows
    columns, times = dataset.schema.names, pc.min_max(rows[dataset.event_time]).as_py()
    with connected() as connection:
        known = open_raw(table, connection=connection)
        events = known.filter(known.superseded.notnull()).superseded
        superseded = connection.to_pyarrow(events).to_pylist()
        if times["min"]:
            known = known.filter(known[dataset.event_time].between(times["min"], times["max"]))
        new = ibis.memtable(rows).anti_join(known.select(columns), columns)
        rows = connection.to_pyarrow(new).cast(dataset.schema)
    aside = {*superseded, *quarantine_table(settings, dataset).read()["row"].to_pylist()}
    return rows.filter(pa.array([row not in aside for row in as_json(rows)], pa.bool_()))


def _land(
    settings: Settings,
    dataset: Dataset,
    rows: pa.Table,
    as_of: datetime,
    reports: UPath | None = None,
) -> IngestReport:
    """Validate the rows that are not known; merge them, or put them into quarantine."""
    table = raw_table(settings, dataset)
    rows = _unknown_rows(settings, rows, table, dataset)
    if not rows.num_rows:
        return IngestReport(dataset.name, as_of, table_version=table.version)
    checked = validate(dataset, rows, as_of, settings.data_docs if reports else None)
    if checked.rejections:
        broken = "; ".join(finding.message for finding in checked.rejections)
        head = f"{dataset.name}: the batch of {place(settings, dataset)} was stopped"
        rules = f"Rules: expectations/{dataset.name}.json"
        if reports:
            path = reports / "ingest" / f"{dataset.name}-{as_of:%Y%m%dT%H%M%S}.json"
            replace_file(path, json.dumps(checked.report, default=str))
            rules += f". Report: {path}"
        raise BatchRejectedError(f"{head}, nothing was changed: {broken}. {rules}")
    bad = checked.bad_rows()
    good = rows.filter(pa.array(i not in bad for i in range(rows.num_rows)))
    if table.exists:
        known_at = pa.repeat(pa.scalar(as_of, TIME), good.num_rows)
    else:
        known_at = good[dataset.event_time]
    landed = good.append_column("ingested_at", known_at)
    merged = table.merge(landed, dataset.key, dataset.schema.names, "ingested_at")
    texts = as_json(rows.take([*bad])) if bad else []
    quarantine(quarantine_table(settings, dataset), texts, [*bad.values()], as_of)
    warnings = tuple(warning.message for warning in checked.warnings)
    counts = merged["inserted"], merged["replaced"], len(bad)
    return IngestReport(dataset.name, as_of, *counts, table.version, warnings)
