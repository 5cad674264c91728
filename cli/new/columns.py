"""The columns of a source: their types and roles, and the variables of templates about them."""

import re
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from rich.prompt import Prompt

from cli.terminal import ERR
from core.connectors.exact_values import exact_values, type_of, within_limits
from core.errors import SettingsError
from core.spec import FRAME_COLUMNS
from feature_repo.definition import OWN_COLUMNS, VIEW_COLUMNS, name_problems

WRITTEN = {
    "int64": ("pa.int64()", "int64"),
    "double": ("pa.float64()", "float64"),
    "bool": ("pa.bool_()", "bool"),
    "timestamp[us, tz=UTC]": ('pa.timestamp("us", tz="UTC")', "Timestamp"),
    "string": ("pa.string()", "str"),
}
"""A column's type → how a dataset writes it, and its name in a suite of expectations."""
TEMPLATE = {"after", "at", "before", "days", "event_us", "events", "place"}
TAKEN = FRAME_COLUMNS.union(VIEW_COLUMNS, TEMPLATE, {"features"})
"""Columns of the expressions in templates/dataset.py.jinja, and fields of a request."""
MOST_AMOUNTS = 4
"""Columns that are added up at most."""
LARGEST_AMOUNT = 1e12
"""The largest number of decimal(18, 6)."""
ROLES = {
    "--key": (
        "column that no two rows share, and no double",
        tuple(kind for kind in WRITTEN if kind != "double"),
    ),
    "--entity": ("column of the entity's key", ("int64", "string")),
    "--time": ("column with {time_words}", ("timestamp[us, tz=UTC]",)),
    "--outcome": ("column that the model learns", ("int64", "double", "bool")),
}
"""Option → the column that it names, as `choose` formats it, and the types of such a column."""


def in_types(rows: pa.Table, time_zone: str | None = None) -> pa.Table:
    """Return the rows in the types that columns of a dataset can have, each row once.

    Rows that ingest would set aside are left out: they have a time or number that no event can have.

    Args:
        rows: Rows of a source.
        time_zone: Zone of times that name none.

    Raises:
        SettingsError: A column has another type, a value that its type does not hold, or a name
            that Gyre gives to one of its own.

    """
    problems = name_problems(rows.column_names, OWN_COLUMNS)
    if problems:
        raise SettingsError(f"--from: {'; '.join(problems)}")
    kinds = {field.name: type_of(field.type, time_zone) for field in rows.schema}
    wrong = [
        f"{field.name} ({field.type})" for field in rows.schema if not kinds[field.name]
    ]
    if wrong:
        raise SettingsError(
            f"--from: expected {', '.join(WRITTEN)}; found {', '.join(wrong)}: "
            "leave it out, or rename or convert it; name the zone of times by --time-zone"
        )
    for position, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz is None:
            times = rows[field.name].combine_chunks()
            moments = exact_values(times, kinds[field.name], time_zone=time_zone)
            rows = rows.set_column(position, field.name, moments)
            rows = rows.filter(pc.or_(times.is_null(), moments.is_valid()))
            continue
        values = _in_type(rows[field.name], field, kinds[field.name])
        rows = rows.set_column(position, field.name, values)
    for name in rows.column_names:
        is_readable = pc.or_(rows[name].is_null(), within_limits(rows[name]).is_valid())
        rows = rows.filter(is_readable)
    return rows.filter(pa.array(~_is_repeated(rows)))


def _in_type(column: pa.ChunkedArray, field: pa.Field, kind: pa.DataType) -> pa.Array:
    values = exact_values(column.combine_chunks(), kind)
    if values.null_count > column.null_count:
        is_lost = pc.and_(column.is_valid(), values.is_null())
        example = column.filter(is_lost).to_numpy()[0]  # a time of any year
        raise SettingsError(
            f"--from: column {field.name} ({field.type}) holds {example}, and {kind} does not: "
            "convert it to text"
        )
    return values


def choose(rows: pa.Table, option: str, name: str | None) -> str:
    """Return the column that an option names; if it names none, ask for it at a terminal.

    Raises:
        SettingsError: The option cannot mean this column, or there is no terminal.

    """
    from feature_engine.ingest.exact_types import TIME_WORDS  # noqa: PLC0415

    template, types = ROLES[option]
    role = template.format(time_words=TIME_WORDS)
    names = [field.name for field in rows.schema if str(field.type) in types]
    if option == "--entity":
        names = [column for column in names if _is_plain(column)]
    return chosen(option, role, names, name)


def chosen(option: str, role: str, choices: Sequence[str], name: str | None) -> str:
    """Return the word that an option gives; if it gives none, ask for it at a terminal.

    Raises:
        SettingsError: It is none of the choices, or there is no terminal.

    """
    if not name:
        return ask(option, role, choices)
    if name not in choices:
        raise SettingsError(
            f"{option}: expected a {role}: {', '.join(choices) or 'none'}; found {name}"
        )
    return name


def ask(option: str, question: str, choices: Sequence[str]) -> str:
    """Ask at a terminal for one of the words that an option can have.

    Raises:
        SettingsError: There is no word to choose, or no terminal.

    """
    if not choices or not sys.stdin.isatty():
        raise SettingsError(
            f"{option}: expected a {question}: {', '.join(choices) or 'none'}"
        )
    return Prompt.ask(f"{option}: {question}", choices=list(choices), console=ERR)


def describe(
    rows: pa.Table,
    key: Sequence[str],
    entity: str,
    time: str,
    outcome: str | None = None,
    days: int = 30,
) -> dict[str, Any]:
    """Return the variables of the templates.

    Args:
        rows: All rows of the source, as `in_types` returns them.
        key: Columns that tell rows apart.
        entity: Column of the entity's key.
        time: Column with the event time.
        outcome: Column that the model learns for each row; None: the model learns which entity
            will have no row within `days`.
        days: Days that the label looks ahead.

    Raises:
        SettingsError: Rows share a key.

    """
    repeated_count = _is_repeated(rows.select(key)).sum()
    if repeated_count:
        raise SettingsError(
            f"--key: {repeated_count} of {rows.num_rows} rows share {', '.join(key)} "
            "with another row: name all columns that tell rows apart"
        )
    limit = None
    if outcome and not pa.types.is_boolean(rows[outcome].type):
        limit = pc.mean(rows[outcome]).as_py()
    types = {field.name: str(field.type) for field in rows.schema}
    required = {*key, entity, time}
    roles = {*required, outcome}
    amounts = [
        name for name in types if name not in roles and _is_amount(name, rows[name])
    ]
    codes = [name for name, kind in types.items() if _is_code(kind, rows[name])]
    filled = [name for name in types if name in required or not rows[name].null_count]
    span = pc.min_max(rows[time]).as_py()
    return {
        "columns": {name: WRITTEN[kind] for name, kind in types.items()},
        "key": tuple(key),
        "entity": entity,
        "is_number": types[entity] == "int64",
        "time": time,
        "outcome": outcome,
        "limit": limit,
        "label": _label_name(outcome) if outcome else f"silent_{days}d",
        "filled": filled,
        "amounts": amounts[:MOST_AMOUNTS],
        "codes": codes,
        "largest": LARGEST_AMOUNT,
        "horizon": days,
        "first_year": min(1990, span["min"].year),
        "last": span["max"],
    }


def _label_name(outcome: str) -> str:
    """Return a name of a Python function, such as `arr_delay_label`."""
    words = re.sub(r"[^0-9A-Za-z]+", "_", outcome).strip("_").lower()
    return f"{words}_label" if words[:1].isalpha() else f"outcome_{words}_label"


def _is_plain(name: str) -> bool:
    """Whether features and requests can have this name."""
    is_word = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)
    return name.lower() not in TAKEN and is_word is not None


def _is_repeated(rows: pa.Table) -> Any:
    """Return for each row whether an earlier row is the same."""
    return rows.to_pandas(types_mapper=pd.ArrowDtype).duplicated()


def _is_code(kind: str, values: pa.ChunkedArray) -> bool:
    """Whether a column has texts that look like whole numbers."""
    if kind != "string":
        return False
    # It is null if the column has nulls alone.
    return bool(pc.all(pc.match_substring_regex(values, r"^[+-]?\d+$")).as_py())


def _is_amount(name: str, values: pa.ChunkedArray) -> bool:
    """Whether a column can be added up exactly."""
    if str(values.type) not in {"int64", "double"} or not _is_plain(name):
        return False
    largest = pc.max(pc.abs(values.cast(pa.float64(), safe=False))).as_py()
    return 0 < (largest or 0) < LARGEST_AMOUNT
