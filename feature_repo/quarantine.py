"""Quarantine: rows that were set aside, and the way back for those that are right after all.

A row goes back by the same rules that set it aside: as it is once the rules have changed, or with
columns repaired. What was released is a table of its own, so what was set aside stays on file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feature_repo.features import TIME, raw_table
from feature_repo.ingest import catch_up, quarantine_table
from feature_repo.store import FeatureStore
from feature_repo.validation import validate
from stack.errors import DataError
from stack.storage import Table, one_writer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feature_repo.definition import Dataset
    from stack.settings import Settings

RELEASED = pa.schema({"row": pa.string(), "as": pa.string(), "released_at": TIME,
                      "who": pa.string(), "why": pa.string()})  # fmt: skip
"""The row as it was set aside and as it went back (JSON both)."""
SHORT = 10


@dataclass(frozen=True)
class Held:
    """A row in quarantine. id: of its content; rules: those it broke."""

    id: str
    quarantined_at: datetime
    rules: str
    row: dict[str, Any]


def held(settings: Settings, dataset: Dataset) -> list[Held]:
    """Rows of `dataset` that were set aside and not released, oldest first."""
    gone = set(_released(settings, dataset).read()["row"].to_pylist())
    rows = quarantine_table(settings, dataset).read().sort_by("quarantined_at").to_pylist()
    return [
        Held(_id(row["row"]), row["quarantined_at"], row["rules"], json.loads(row["row"]))
        for row in rows if row["row"] not in gone
    ]  # fmt: skip


def find(settings: Settings, dataset: Dataset, row_id: str) -> Held:
    """Return the one row in quarantine whose id begins with `row_id`.

    Raises:
        DataError: there is none, or more than one.

    """
    found = [each for each in held(settings, dataset) if each.id.startswith(row_id)]
    if len(found) != 1:
        raise DataError(f"{dataset.name}: the id of {len(found)} rows in quarantine is {row_id!r}…")
    return found[0]


def release(
    settings: Settings,
    dataset: Dataset,
    row_id: str,
    as_of: datetime,
    *,
    changes: Mapping[str, str],
    who: str,
    why: str,
) -> dict[str, Any]:
    """Put one row into the raw table, its features and the online store; return it as it is there.

    changes: new values by column, as text. Repeated after a kill it ends what it had begun.

    Raises:
        DataError: no such row, no such column, or the row still breaks a rule: nothing changed.

    """
    one = find(settings, dataset, row_id)
    if unknown := changes.keys() - set(dataset.schema.names):
        raise DataError(f"{dataset.name} has no column {', '.join(sorted(unknown))}")
    rows = _typed(dataset, {**one.row, **changes})
    checked = validate(dataset, rows, as_of)
    if broken := [f.message for f in checked.findings if f.rows or f in checked.rejections]:
        raise DataError(f"{row_id} still breaks a rule: {'; '.join(broken)}")
    store, table = FeatureStore(settings), raw_table(settings, dataset)
    landed = rows.append_column("ingested_at", pa.array([as_of], TIME))
    with one_writer(settings.data / dataset.name):
        table.merge(landed, dataset.key, dataset.schema.names)
        catch_up(settings, dataset, store, table, as_of)
    back: dict[str, Any] = rows.to_pylist()[0]
    line = {"row": _text(one.row), "as": _text(back), "released_at": as_of, "who": who, "why": why}
    _released(settings, dataset).insert(pa.Table.from_pylist([line], RELEASED), "row")
    return back


def _typed(dataset: Dataset, row: Mapping[str, Any]) -> pa.Table:
    columns = []
    for column in dataset.schema:
        value = row.get(column.name)
        if isinstance(value, str) and pa.types.is_timestamp(column.type):
            value = _moment(column.name, value)
        try:
            columns.append(pa.array([value]).cast(column.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
            raise DataError(f"{column.name}: expected {column.type}, found {value!r}") from exc
    return pa.table(columns, dataset.schema)


def _moment(name: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise DataError(f"{name}: expected a time with an offset, found {text!r}") from exc
    if moment.tzinfo is None:
        raise DataError(f"{name}: {text} lacks an offset from UTC")
    return moment


def _released(settings: Settings, dataset: Dataset) -> Table:
    return Table(settings.data / "released" / dataset.name, RELEASED)


def _id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT]


def _text(row: Mapping[str, Any]) -> str:
    return json.dumps(row, default=str, sort_keys=True)
