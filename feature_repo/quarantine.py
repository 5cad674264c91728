"""Quarantine: rows that were set aside. They are listed here and mended at the source.

A row that the source delivers again as it was stays set aside; with other content it is a new row.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from core.settings import Settings
from core.storage import Table
from feature_repo.definition import Dataset
from feature_repo.features import TIME


def quarantine_table(settings: Settings, dataset: Dataset) -> Table:
    """Rows set aside: when, by which rules, and the row as JSON (its types may be the fault)."""
    schema = pa.schema({"quarantined_at": TIME, "rules": pa.string(), "row": pa.string()})
    return Table(settings, f"quarantine/{dataset.name}", schema)


def quarantine(table: Table, rows: Sequence[str], rules: Sequence[str], at: datetime) -> None:
    """Write rows (JSON) with the rules they broke, once: one that is there already stays."""
    if rows:
        columns = {"quarantined_at": pa.array([at] * len(rows), TIME), "rules": rules, "row": rows}
        table.merge(pa.table(columns), key=("row",), content=("rules",))


def quarantined(settings: Settings, dataset: Dataset) -> list[dict[str, Any]]:
    """Return the rows of `dataset` that were set aside, oldest first, as in `quarantine_table`."""
    rows = quarantine_table(settings, dataset).read().sort_by("quarantined_at")
    return [row | {"row": json.loads(row["row"])} for row in rows.to_pylist()]


def as_json(rows: pa.Table) -> list[str]:
    return [json.dumps(row, default=str, sort_keys=True) for row in rows.to_pylist()]
