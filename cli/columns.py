"""What the columns of a source are for: as somebody says, else by their types, names and values."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import SettingsError
from core.spec import OURS
from feature_repo.source import TIME_WORDS, type_of

WRITTEN = {
    "int64": ("pa.int64()", "int64"),
    "double": ("pa.float64()", "float64"),
    "bool": ("pa.bool_()", "bool"),
    "timestamp[us, tz=UTC]": ('pa.timestamp("us", tz="UTC")', "Timestamp"),
    "string": ("pa.string()", "str"),
}
"""A column's type → how a dataset writes it, and its name in a suite of expectations."""
IDENTIFIER = re.compile(
    r"(?i:(^|_)(id|uuid|key|code|ref|no|nr|num|number))$|[a-z](Id|ID|No)$"
    r"|^(?i:account|card|client|customer|device|machine|member|patient|sensor|user|vehicle)$"
)
"""Names that say who or which, more likely than how much."""
TAKEN = OURS | {"at", "created", "days", "event_us", "events"}
"""Columns of the expressions in templates/dataset.py.jinja."""
WANTED = {
    "--time": TIME_WORDS,
    "--entity": "whole numbers or text that rows share, under a name such as customer_id",
    "--key": "whole numbers or text that no two rows share, or several columns",
}
Types = Mapping[str, str]
FEW_NULLS = 0.05
BIGGEST, MOST = 1e12, 4
"""Of the columns that are added up: what decimal(18, 6) holds, and how many."""
OFTEN = np.timedelta64(12, "D")
"""Where most events follow another one sooner, silence of 30 days is rare, and 7 are asked."""


def describe(
    rows: pa.Table,
    key: Sequence[str] = (),
    entity: str | None = None,
    time: str | None = None,
) -> dict[str, Any]:
    """Return the variables of the templates that a source decides; key, entity, time: as said.

    Raises:
        SettingsError: a column that cannot be meant, or several that could be, by option.

    """
    kinds = {field.name: type_of(field.type) for field in rows.schema} | {
        "ingested_at": None
    }
    if wrong := [f"{f.name} ({f.type})" for f in rows.schema if not kinds[f.name]]:
        found = f"expected {', '.join(WRITTEN)}; found {', '.join(wrong)}"
        raise SettingsError(f"--from: {found}: leave it out, or rename or convert it")
    rows = rows.cast(pa.schema({name: kinds[name] for name in rows.column_names}))
    # The same row again says nothing.
    rows = rows.group_by(rows.column_names).aggregate([])
    types = {field.name: str(field.type) for field in rows.schema}
    key, entity, time = _roles(rows, types, key, entity, time)
    events = rows.select([entity, time]).drop_null()
    events = events.sort_by([(entity, "ascending"), (time, "ascending")])
    owners, times = (column.to_numpy() for column in events.columns)
    gaps = np.diff(times)[owners[1:] == owners[:-1]]
    span = pc.min_max(rows[time]).as_py()
    quantities = [
        n for n in types if n not in {*key, entity} and _is_quantity(n, rows[n])
    ]
    return {
        "columns": {name: WRITTEN[kind] for name, kind in types.items()},
        "key": key,
        "entity": entity,
        "is_number": types[entity] == "int64",
        "time": time,
        "filled": [
            n for n in types if n in {*key, entity, time} or not rows[n].null_count
        ],
        "amounts": quantities[:MOST],
        "horizon": 7 if gaps.size and np.median(gaps) < OFTEN else 30,
        "first_year": min(1990, span["min"].year),
        "last": span["max"],
    }


def _roles(
    rows: pa.Table,
    types: Types,
    key: Sequence[str],
    entity: str | None,
    time: str | None,
) -> tuple[tuple[str, ...], str, str]:
    full = [
        name for name in types if rows[name].null_count <= FEW_NULLS * rows.num_rows
    ]
    time = _one(
        types, "--time", time, [n for n in full if types[n].startswith("timestamp")]
    )
    ids = [name for name in full if types[name] in {"int64", "string"}]
    alone = [name for name in ids if not _repeated(rows, [name])]
    shared = [name for name in ids if name not in alone and _is_plain(name)]
    entity = _one(types, "--entity", entity, shared)
    if not key and not alone and not _repeated(rows, [entity, time]):
        key = (entity, time)
    key = [_one(types, "--key", name, full) for name in key] or [
        _one(types, "--key", None, alone)
    ]
    if repeated := _repeated(rows, key):
        text = f"{repeated} of {rows.num_rows} rows share {', '.join(key)} with another row"
        raise SettingsError(f"--key: {text}: name all columns that tell rows apart")
    return tuple(key), entity, time


def _one(types: Types, option: str, name: str | None, possible: Sequence[str]) -> str:
    """Return `name` if it is possible; where nobody says one, the only one that is likely."""
    likely = [*filter(IDENTIFIER.search, possible)] or possible
    if name is None and len(likely) == 1:
        return likely[0]
    if name is not None and name in possible:
        return name
    found = name or ", ".join(f"{column} ({kind})" for column, kind in types.items())
    which = f": say {option} with one of {', '.join(likely)}" if likely else ""
    raise SettingsError(f"{option}: expected {WANTED[option]}; found {found}{which}")


def _is_plain(name: str) -> bool:
    """Whether features and requests can have this name."""
    return (
        name not in TAKEN and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None
    )


def _is_quantity(name: str, values: pa.ChunkedArray) -> bool:
    if str(values.type) not in {"int64", "double"} or IDENTIFIER.search(name):
        return False
    return _is_plain(name) and 0 < (pc.max(pc.abs(values)).as_py() or 0) < BIGGEST


def _repeated(rows: pa.Table, names: Sequence[str]) -> int:
    """How many rows have the values of another one in columns `names`."""
    return int(rows.num_rows - rows.group_by(list(names)).aggregate([]).num_rows)
