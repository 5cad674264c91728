"""Great Expectations on the raw rows that a training is pinned to.

A row landed by the rules of its day, and rules may be stricter since. The rules of single rows are
applied again, and the key must be unique. Rules over many rows are about a delivery: they are not
applied.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

import ibis
import ibis.expr.types as ir
from pydantic import TypeAdapter, ValidationError
from upath import UPath

from core.files import read_if_present, replace_file
from core.settings import Settings
from feature_engine.engines.duckdb_engine import duckdb_connection
from feature_engine.ingest.landing import in_batches
from feature_engine.offline.raw import open_raw, raw_table
from feature_repo.definition import Dataset
from feature_repo.engine import RowsResult
from feature_repo.rules import DatasetRules, suite_rules


@dataclass(frozen=True)
class PinnedRows:
    """The rows of a raw table that a result is about.

    Attributes:
        table: Id of the table.
        version: Its pinned version.
        suite: Hash of the rules.
        count: How many rows the training may know.
        newest: Event time of the newest one, ISO 8601.

    """

    table: str
    version: int
    suite: str
    count: int
    newest: str


@dataclass(frozen=True)
class KeptResult:
    """The last result of rules that all passed, in one sentence, and its rows."""

    rows: PinnedRows
    words: str


KEPT = TypeAdapter(KeptResult)


def validate_rows(
    settings: Settings, dataset: Dataset, version: int, as_of: datetime
) -> RowsResult:
    """Apply the dataset's rules to the rows that were known and had happened at `as_of`.

    The last result is kept if all rules passed, and returned again for the same rows and rules.

    Args:
        settings: Settings of the installation.
        dataset: Dataset of the rows.
        version: Version of the raw table.
        as_of: Aware UTC.

    Raises:
        DataError: The suite cannot be read, or has a rule that cannot be evaluated.

    """
    file = settings.reports / "expectations" / f"{dataset.name}.json"
    with duckdb_connection() as connection:
        table = raw_table(settings, dataset)
        raw = open_raw(connection, table, version, as_of)
        has_happened = raw[dataset.event_time] <= ibis.literal(as_of)
        rows = raw.filter(has_happened).select(dataset.schema.names)
        newest = rows[dataset.event_time].max()
        figures = rows.aggregate(count=rows.count(), newest=newest)
        (row,) = figures.to_pyarrow().to_pylist()
        rules = json.dumps(suite_rules(dataset), sort_keys=True)
        pinned = PinnedRows(
            table=table.identity,
            version=version,
            suite=hashlib.sha256(rules.encode()).hexdigest(),
            count=row["count"],
            newest=row["newest"].isoformat() if row["newest"] else "",
        )
        kept = _read(file)
        if kept and kept.rows == pinned:
            return RowsResult(kept.words)
        result = _judge(dataset, pinned, rows, as_of)
    if not result.rejections:
        kept = KeptResult(pinned, result.words)
        replace_file(file, KEPT.dump_json(kept).decode())
    return result


def _read(file: UPath) -> KeptResult | None:
    """Return the kept result; None if there is none, or it cannot be read."""
    content = read_if_present(file)
    try:
        return KEPT.validate_json(content) if content else None
    except ValidationError:
        return None


def _judge(
    dataset: Dataset, pinned: PinnedRows, rows: ir.Table, as_of: datetime
) -> RowsResult:
    rules = DatasetRules(dataset, for_events=True, unique_key=True)
    bad_count = 0
    for batch in in_batches(rows, dataset.key):
        validation = rules.validate(batch, as_of)
        if validation.rejections:
            # MLflow's database and alerts get no values of rows; `gyre forget` deletes the page.
            rejections = [
                text.partition(", such as ")[0] for text in validation.rejections
            ]
            return RowsResult(
                words=f"version {pinned.version} of its rows breaks a rule",
                rejections=tuple(rejections),
                page=validation.page(),
            )
        bad_count += len(validation.bad_rows)
    words = (
        f"{pinned.count:,} rows of version {pinned.version} pass {rules.count} rules"
    )
    if bad_count:
        words += f"; rows that break one, within its `mostly`: {bad_count:,}"
    return RowsResult(words)
