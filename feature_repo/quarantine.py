"""Quarantine: rows that were set aside. They are mended at the source, or released.

A row that the source delivers again as it was stays set aside; with other content it is a new row.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.json import ParseOptions, read_json

from core.locks import one_writer
from core.settings import Settings
from core.storage import Table
from feature_repo.definition import Dataset
from feature_repo.features import TIME, raw_table
from feature_repo.forgotten import literal
from feature_repo.validation import DatasetRules

Row = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """What became of rows in quarantine.

    released: how many are in the raw table now.
    broken: how many still break a rule.
    unreadable: how many are no rows of today's columns, such as requests that were no events.
    conflicts: each row that stays as the raw table has one of its key, with that one.
    """

    released: int
    broken: int
    unreadable: int
    conflicts: list[tuple[Row, Row]]


def quarantine_table(settings: Settings, dataset: Dataset) -> Table:
    """Rows set aside: when, by which rules, and the row as JSON (its types may be the fault)."""
    columns = {
        "quarantined_at": TIME,
        "rules": pa.string(),
        "row": pa.string(),
    }
    return Table(settings, f"quarantine/{dataset.name}", pa.schema(columns))


def quarantine(
    table: Table,
    rows: Sequence[str],
    rules: Sequence[str],
    at: datetime,
) -> None:
    """Write rows (JSON) with the rules they broke, once: one that is there already stays."""
    if rows:
        columns = {
            "quarantined_at": pa.array([at] * len(rows), TIME),
            "rules": rules,
            "row": rows,
        }
        table.merge(pa.table(columns), key=["row"], content=["rules"])


def quarantined(settings: Settings, dataset: Dataset) -> list[Row]:
    """Return the rows of `dataset` that were set aside, oldest first, as in `quarantine_table`."""
    table = quarantine_table(settings, dataset)
    entries: list[Row] = table.read().sort_by("quarantined_at").to_pylist()
    for entry in entries:
        entry["row"] = json.loads(entry["row"])
    return entries


def release(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
    rule: str = "",
) -> Release:
    """Let rows in quarantine that pass today's rules into the raw table, as arrived at `as_of`.

    Of several rows of one key the newest gets in; none does if the table has a row of that key.

    Args:
        settings: Of the installation.
        dataset: Whose rows they are.
        as_of: Now; the rows become known at this moment.
        rule: Part of a rule's name; rows that broke other rules are left alone.

    """
    table = raw_table(settings, dataset)
    columns = dataset.schema.names
    with one_writer(settings, dataset.name), one_writer(settings, table.name):
        entries = [
            entry["row"] for entry in quarantined(settings, dataset) if rule in entry["rules"]
        ]
        tables = [_from_json(entry, dataset.schema) for entry in entries]
        rows = pa.concat_tables([dataset.schema.empty_table(), *tables])
        rules = DatasetRules(dataset, for_events=True)
        validation = rules.validate(rows, as_of)
        good_rows = validation.good(rows)
        first_key = dataset.key[0]
        has_key = pc.field(first_key).isin(good_rows[first_key])
        stored = table.read(columns=columns, where=has_key)
        stored_rows = {_key_of(row, dataset): row for row in stored.to_pylist()}
        arrivals: list[Row] = []
        released_texts: list[str] = []
        conflicts: list[tuple[Row, Row]] = []
        for row in reversed(good_rows.to_pylist()):
            key = _key_of(row, dataset)
            if key not in stored_rows:
                stored_rows[key] = row
                arrivals.append(row | {"ingested_at": as_of})
            if stored_rows[key] == row:
                released_texts.append(literal(as_text(row)))
            else:
                conflicts.append((row, stored_rows[key]))
        if arrivals:
            new_rows = pa.Table.from_pylist(arrivals, table.schema)
            table.merge(new_rows, dataset.key, columns)
        if released_texts:
            condition = f"row IN ({', '.join(released_texts)})"
            quarantine_table(settings, dataset).erase(condition)
    return Release(
        released=len(released_texts),
        broken=len(validation.bad_rows),
        unreadable=len(entries) - rows.num_rows,
        conflicts=conflicts,
    )


def as_json(rows: pa.Table) -> list[str]:
    return [as_text(row) for row in rows.to_pylist()]


def as_text(row: Row) -> str:
    return json.dumps(row, default=str, sort_keys=True)


def _from_json(entry: Row, schema: pa.Schema) -> pa.Table:
    """Return the row that `as_json` wrote; none if it has not the columns and types of `schema`."""
    text = as_text(entry)
    buffer = pa.BufferReader(text.encode())
    try:
        row = read_json(buffer, parse_options=ParseOptions(schema))
    except pa.ArrowInvalid:
        return schema.empty_table()
    if as_json(row) != [text]:
        return schema.empty_table()
    return row


def _key_of(row: Row, dataset: Dataset) -> tuple[Any, ...]:
    return tuple(row[name] for name in dataset.key)
