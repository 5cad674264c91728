"""Landing: rows of a delivery become rows of the raw table, or of quarantine."""

from dataclasses import dataclass
from datetime import datetime

import ibis
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import BatchRejectedError
from core.files import replace_file
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
) -> IngestReport:
    """Validate the new rows of a delivery; merge the good ones, set the bad ones aside.

    Great Expectations' Data Docs of the new rows are in `settings.data_docs`.

    Args:
        settings: Of the installation whose tables get the rows.
        dataset: Whose rows they are.
        delivery: Rows in the order of the source; of one key the last one counts.
        as_of: When the rows became known; those of the first delivery, at their event time.

    Raises:
        BatchRejectedError: A rule failed as a whole; nothing was changed.

    """
    raw = raw_table(settings, dataset)
    aside = quarantine_table(settings, dataset)
    rows = _new_rows(dataset, raw, aside, last_of_key(delivery, dataset.key))
    source = place(settings, dataset)
    if not rows.num_rows:
        warnings = () if delivery.num_rows else (f"{source} delivered no rows",)
        return IngestReport(
            dataset=dataset.name,
            as_of=as_of,
            table_version=raw.version,
            warnings=warnings,
        )
    validation = DatasetRules(dataset).validate(rows, as_of)
    replace_file(settings.data_docs / dataset.name / "index.html", validation.page())
    if validation.rejections:
        head = f"{dataset.name}: the batch of {source} was stopped, nothing was changed"
        text = (
            f"{head}: {'; '.join(validation.rejections)}. Rules: {suite_file(dataset)}"
        )
        raise BatchRejectedError(text)
    good_rows = validation.good(rows)
    arrivals = good_rows[dataset.event_time]
    if raw.exists:
        arrivals = pa.repeat(pa.scalar(as_of, TIME), good_rows.num_rows)
    counts = raw.merge(
        good_rows.append_column("ingested_at", arrivals),
        key=dataset.key,
        content=dataset.schema.names,
        arrival="ingested_at",
    )
    bad_rows = rows.take(pa.array(validation.bad_rows, pa.int64()))
    quarantine(aside, as_json(bad_rows), list(validation.bad_rows.values()), as_of)
    return IngestReport(
        dataset=dataset.name,
        as_of=as_of,
        **counts,
        quarantined=bad_rows.num_rows,
        table_version=raw.version,
        warnings=(*validation.warnings, *_contradictions(dataset, delivery, rows)),
    )


def _new_rows(
    dataset: Dataset,
    raw: Table,
    aside: Table,
    rows: pa.Table,
) -> pa.Table:
    """Return the rows whose content neither the table nor quarantine holds.

    These are new keys and corrections. A row that an event corrected was delivered before.
    """
    if not raw.exists:
        return rows
    with connected() as connection:
        delivered = ibis.memtable(rows)
        stored = open_raw(raw, connection=connection)
        stored_rows = stored.semi_join(delivered, dataset.key).select(
            dataset.schema.names
        )
        # Nulls are the same in a difference of sets, and not in a join.
        rows = connection.to_pyarrow(delivered.difference(stored_rows))
        corrected_texts = connection.to_pyarrow(stored.superseded).drop_null()
    texts = {*corrected_texts.to_pylist(), *aside.read()["row"].to_pylist()}
    is_new = [text not in texts for text in as_json(rows)]
    return rows.filter(pa.array(is_new, pa.bool_()))


def _contradictions(
    dataset: Dataset,
    delivery: pa.Table,
    new_rows: pa.Table,
) -> list[str]:
    """Return a warning if a delivery holds new keys with several contents."""
    key = list(dataset.key)
    contents = delivery.group_by(delivery.column_names).aggregate([])
    content_counts = contents.group_by(key).aggregate([([], "count_all")])
    repeated = content_counts.filter(pc.field("count_all") > 1).select(key)
    keys = repeated.join(new_rows.select(key), key, join_type="left semi")
    if not keys.num_rows:
        return []
    text = f"keys with several contents in one delivery: {keys.num_rows}"
    examples = keys.slice(0, 3).to_pylist()
    return [f"{text}, such as {examples}; of each the last row counts"]
