"""Rows in the types of a dataset's columns, and rows with values that these do not hold."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from core.connectors.exact_values import cast_or_null, exact_values, within_limits
from feature_repo.definition import OWN_PREFIX, TIMESTAMP, Dataset

TIME_WORDS = "a day (2026-11-20) or a time with its offset (2026-11-20T10:30:00Z)"
YEARS = "a year from 2 to 9998"
ODD_VALUE = r"[+-]?\d+|[+-]?\d{5,}-.*|-\d.*|0000-.*"
"""A number or a time of the right kind that its type does not hold: 007, or the year 20000."""
LOCAL_TIME = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d.*"
ROW_ENCODER = json.JSONEncoder(default=str, sort_keys=True)
UNREADABLE = pa.field(
    f"{OWN_PREFIX}unreadable", pa.struct({"row": pa.string(), "problem": pa.string()})
)
"""The last column of a batch; null in most rows.

row: JSON of a row with a value that the type of its column does not hold; such values are texts, as
the source has them.
problem: the columns, each with the expected type and the value found.
"""


def type_problem(field: pa.Field, source_type: pa.DataType) -> str:
    """Return the message that a column of the source has another type than the dataset's."""
    expected = TIME_WORDS if field.type == TIMESTAMP else field.type
    return f"column {field.name}: expected {expected}, found {source_type}"


def _is_of_kind(source_type: pa.DataType, text: str, time_zone: str | None) -> bool:
    """Whether a value that a type does not hold is a number or a time all the same."""
    is_text = pa.types.is_string(source_type)
    pattern = f"{ODD_VALUE}|{LOCAL_TIME}" if time_zone else ODD_VALUE
    return pa.types.is_timestamp(source_type) or bool(
        is_text and re.fullmatch(pattern, text)
    )


def _readable(column: pa.Array) -> pa.Array:
    """Return a column whose texts are strings; a text that is no UTF-8 becomes null."""
    if pa.types.is_binary(column.type):
        return cast_or_null(column, pa.string())
    if pa.types.is_string(column.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return cast_or_null(column.cast(pa.binary()), pa.string())
    return column


def as_text(row: Mapping[str, Any]) -> str:
    """Return a row as quarantine has it, in JSON."""
    return ROW_ENCODER.encode(row)


def in_schema(
    batch: pa.RecordBatch,
    dataset: Dataset,
    problems: dict[str, str | None],
    time_zone: str | None = None,
) -> pa.RecordBatch:
    """Return rows with the dataset's columns and UNREADABLE.

    Args:
        batch: Rows of a source.
        dataset: The dataset of the rows.
        problems: Gets, for each column whose values are all of another kind, the problem of the
            first value.
        time_zone: Zone of times that name none.

    """
    columns = []
    row_texts: dict[int, dict[str, str]] = defaultdict(dict)
    row_problems: dict[int, list[str]] = defaultdict(list)
    for field in dataset.schema:
        column = batch[field.name]
        is_identity = field.name in {*dataset.key, dataset.entity}
        readable_values = _readable(column)
        typed_values = exact_values(
            readable_values,
            field.type,
            is_identity=is_identity,
            time_zone=time_zone,
        )
        values = within_limits(typed_values)
        columns.append(values)
        if typed_values.null_count < len(batch):
            problems[field.name] = None
        is_unreadable = pc.and_(column.is_valid(), values.is_null())
        for position in pc.indices_nonzero(is_unreadable).to_pylist():
            (value,) = column.slice(position, 1).to_numpy(zero_copy_only=False)
            text = str(value)  # of any year
            if isinstance(value, bytes):
                text = value.decode(errors="backslashreplace")
            problem = f"{type_problem(field, readable_values.type)}: {text!r}"
            if typed_values[position].is_valid:
                limit = YEARS if field.type == TIMESTAMP else "a finite number"
                problem += f", which is not {limit}"
            elif not _is_of_kind(readable_values.type, text, time_zone):
                problems.setdefault(field.name, problem)
            row_texts[position][field.name] = text
            row_problems[position].append(problem)
    rows = pa.RecordBatch.from_arrays(columns, schema=dataset.schema)
    marks: list[dict[str, str] | None] = [None] * len(batch)
    for position, texts in row_texts.items():
        (row,) = rows.slice(position, 1).to_pylist()
        text = as_text(row | texts)
        marks[position] = {"row": text, "problem": "; ".join(row_problems[position])}
    return rows.append_column(UNREADABLE, pa.array(marks, UNREADABLE.type))
