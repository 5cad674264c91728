"""Rows on which a served model must score as the original: real ones, drawn ones, and edges."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from core.spec import MISSING, InputType, ModelSpec
from mlflow_server.manifest import ModelInterface, SignatureType

DRAWN_ROWS = 20_000
NULL_SHARE = 0.01
BASE_ROWS = 20
"""Real rows of which each edge has one column changed."""
ENDS: dict[SignatureType, tuple[Any, ...]] = {
    "boolean": (0, 1),
    "integer": (-(2**31), 2**31 - 1),
    "long": (-(2**53), 2**53),
    "float": (-3e38, 3e38, 1e-38),
    "double": (-1e300, 1e300, 1e-300),
    "string": ("", "never seen", "x" * 300, "Größe 東京"),
}
"""Values at the ends of a type. JSON and most clients have integers up to 2^53."""


def nullable_columns(rows: pd.DataFrame) -> list[str]:
    """Return the columns with a null: a request may have one there."""
    is_null = rows.isna() | (rows == MISSING)
    return [str(name) for name in rows.columns[is_null.any()]]


def drawn_rows(rows: pd.DataFrame, spec: ModelSpec) -> pd.DataFrame:
    """Draw each feature by itself; where a column has nulls, one value in a hundred is null."""
    random = np.random.default_rng(spec.seed)
    nullable = nullable_columns(rows)
    drawn = {}
    for name, kind in spec.inputs.items():
        values = pd.Series(random.choice(rows[name].to_numpy(), DRAWN_ROWS))
        if name in nullable:
            is_null = random.random(DRAWN_ROWS) < NULL_SHARE
            values = values.mask(is_null, null_of(kind))
        drawn[name] = values
    return pd.DataFrame(drawn)


def null_of(kind: InputType) -> Any:
    return MISSING if kind == "string" else np.nan


def edge_rows(
    rows: pd.DataFrame, spec: ModelSpec, interface: ModelInterface
) -> pd.DataFrame:
    """Return real rows with one value each at an edge: of its column's range, and of its type."""
    base = rows.sample(min(BASE_ROWS, len(rows)), random_state=spec.seed)
    kinds = {column.name: column.kind for column in interface.columns}
    parts = []
    for name, own_kind in spec.inputs.items():
        for value in _edges(rows[name], own_kind, kinds[name]):
            changed = base.copy()
            changed[name] = pd.Series([value] * len(base), index=base.index).astype(
                rows[name].dtype
            )
            parts.append(changed)
    return pd.concat(parts, ignore_index=True)


def _edges(
    column: "pd.Series[Any]", own_kind: InputType, kind: SignatureType
) -> list[Any]:
    """Return values at the edges of a column."""
    ends = [*ENDS[kind]]
    if own_kind == "string":
        return ends
    known = column.dropna()
    low, high, middle = known.min(), known.max(), known.median()
    spread = float(high) - float(low) or 1.0
    near = [low, high, middle, 0, float(low) - spread, float(high) + spread]
    if own_kind == "double":
        near += [np.nextafter(each, np.inf) for each in (low, high, middle)]
        near += [np.nextafter(each, -np.inf) for each in (low, high, middle)]
        return [float(each) for each in (*near, *ends)]
    if kind == "boolean":
        return ends
    inside = [min(max(int(each), ends[0]), ends[1]) for each in near]
    return [*inside, *map(int, ends)]


def accepted_rows(score: Any, rows: pd.DataFrame) -> tuple[pd.DataFrame, Any]:
    """Return the rows that the original scores, and its scores.

    It may refuse a text that it has never seen, or an extreme value: then it refuses it here, too.
    """
    with suppress(Exception):  # whatever its library raises
        return rows, score(rows)
    accepted = []
    scores = []
    for position in range(len(rows)):
        row = rows[position : position + 1]
        try:
            scores.append(score(row))
        except Exception:  # noqa: BLE001, S112  (likewise)
            continue
        accepted.append(row)
    if not accepted:
        return rows[:0], np.empty(0)
    return pd.concat(accepted), np.concatenate(scores)


def refused_nulls(
    score: Any, rows: pd.DataFrame, inputs: Mapping[str, InputType]
) -> list[str]:
    """Return what the original cannot score: nulls, or texts that it was not trained on."""
    refused = []
    values: dict[InputType, Any] = {"double": np.nan, "string": "never seen"}
    words = {"double": "null", "string": "text that it was not trained on"}
    for kind, value in values.items():
        names = [name for name, own_kind in inputs.items() if own_kind == kind]
        if not names:
            continue
        probe = rows.head(1).assign(**dict.fromkeys(names, value))
        try:
            is_scored = bool(np.isfinite(score(probe)).all())
        except Exception:  # noqa: BLE001  (whatever its library raises)
            is_scored = False
        if not is_scored:
            refused.append(words[kind])
    return refused
