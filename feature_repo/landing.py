"""Landing: rows of a delivery become rows of the raw table, or of quarantine."""

from dataclasses import dataclass
from datetime import datetime

import ibis
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from core.errors import BatchRejectedError
from core.settings import Settings
from core.storage import Table
from feature_repo.definition import Dataset
from feature_repo.engines import connected
from feature_repo.entities import last_of_key
from feature_repo.features import TIME, open_raw, raw_table
from feature_repo.quarantine import as_json, quarantine, quarantine_table
from feature_repo.source import place
from feature_repo.validation import DatasetRules, suite_file


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
        counts = f"{self.inserted} new, {self.replaced} corrected, {self.quarantined} quarantined"
        head = f"{self.dataset} as of {self.as_of:%Y-%m-%d %H:%M} UTC: {counts}"
        return "; ".join((head, f"table version {self.table_version}", *self.warnings))


def land(
    settings: Settings,
    dataset: Dataset,
    delivery: pa.Table,
    as_of: datetime,
    docs: UPath | None = None,
) -> IngestReport:
    """Validate the new rows of a delivery; merge the good ones, set the bad ones aside.

    Args:
        settings: Of the installation whose tables get the rows.
        dataset: Whose rows they are.
        delivery: Rows in the order of the source; of one key the last one counts.
        as_of: When the rows became known; those of the first delivery, at their event time.
        docs: Folder for Great Expectations' Data Docs of the new rows.

    Raises:
        BatchRejectedError: A rule failed as a whole; nothing was changed.

    """
    table = raw_table(settings, dataset)
    aside = quarantine_table(settings, dataset)
    distinct_rows = last_of_key(delivery, dataset.key)
    rows = _new_rows(dataset, table, aside, distinct_rows)
    if not rows.num_rows:
        return IngestReport(dataset.name, as_of, table_version=table.version)
    rules = DatasetRules(dataset)
    validation = rules.validate(rows, as_of)
    if docs:
        rules.write_docs(docs)
    if validation.rejections:
        head = f"{dataset.name}: the batch of {place(settings, dataset)} was stopped"
        text = f"{head}, nothing was changed: {'; '.join(validation.rejections)}"
        raise BatchRejectedError(f"{text}. Rules: {suite_file(dataset)}")
    bad_rows = validation.bad_rows
    landed = validation.good(rows)
    arrivals = landed[dataset.event_time]
    if table.exists:
        arrivals = pa.repeat(pa.scalar(as_of, TIME), landed.num_rows)
    landed = landed.append_column("ingested_at", arrivals)
    counts = table.merge(
        landed,
        key=dataset.key,
        content=dataset.schema.names,
        arrival="ingested_at",
    )
    positions = pa.array(bad_rows, pa.int64())
    texts = as_json(rows.take(positions))
    quarantine(aside, texts, list(bad_rows.values()), as_of)
    warnings = list(validation.warnings)
    if distinct_rows.num_rows < delivery.num_rows:
        warnings += _contradictions(dataset, delivery, rows)
    return IngestReport(
        dataset=dataset.name,
        as_of=as_of,
        **counts,
        quarantined=len(bad_rows),
        table_version=table.version,
        warnings=tuple(warnings),
    )


def _new_rows(dataset: Dataset, table: Table, aside: Table, rows: pa.Table) -> pa.Table:
    """Return the rows whose content neither the table nor quarantine holds.

    These are new keys and corrections. A row that an event corrected was delivered before.
    """
    if not table.exists:
        return rows
    span = pc.min_max(rows[dataset.event_time]).as_py()
    with connected() as connection:
        stored = open_raw(table, connection=connection)
        corrected = connection.to_pyarrow(stored.superseded)
        time = stored[dataset.event_time]
        is_near = time.between(*span.values()) | time.isnull()
        near_rows = stored.filter(is_near).select(dataset.schema.names)
        # Nulls are the same in a difference of sets, and not in a join.
        new_rows = ibis.memtable(rows).difference(near_rows)
        rows = connection.to_pyarrow(new_rows)
    known_texts = set(corrected.to_pylist())
    known_texts.update(aside.read()["row"].to_pylist())
    is_new = [text not in known_texts for text in as_json(rows)]
    return rows.filter(pa.array(is_new, pa.bool_()))


def _contradictions(dataset: Dataset, delivery: pa.Table, new_rows: pa.Table) -> list[str]:
    """Return a warning if a delivery holds new keys with several contents."""
    key = list(dataset.key)
    rows = delivery.join(new_rows.select(key), key, join_type="left semi")
    contents = rows.group_by(rows.column_names).aggregate([])
    content_counts = contents.group_by(key).aggregate([([], "count_all")])
    is_repeated = pc.field("count_all") > 1
    keys = content_counts.filter(is_repeated).select(key)
    if not keys.num_rows:
        return []
    text = f"keys with several contents in one delivery: {keys.num_rows}"
    examples = keys.slice(0, 3).to_pylist()
    return [f"{text}, such as {examples}; of each the last row counts"]
