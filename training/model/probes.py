"""Rows on which a served model must score as the original: real ones, drawn ones, and edges."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from core.spec import MISSING, InputType, ModelSpec
from mlflow_server.manifest import ModelInterface, SignatureType

DRAWN_ROWS = 20_000
RARE_SHARE = 0.01
UNSEEN_VALUES: dict[InputType, Any] = {"double": np.nan, "string": "never seen"}
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


def nulls_of(rows: pd.DataFrame, spec: ModelSpec) -> dict[str, Any]:
    """Return the null of each column that has one: a request may have it there."""
    is_null = (rows.isna() | (rows == MISSING)).any()
    return {
        name: MISSING if kind == "string" else np.nan
        for name, kind in spec.inputs.items()
        if is_null[name]
    }


def drawn_rows(
    rows: pd.DataFrame, spec: ModelSpec, rare: Mapping[str, Any], count: int
) -> pd.DataFrame:
    """Draw each feature by itself.

    Args:
        rows: Rows whose values are drawn.
        spec: The model.
        rare: By name of a feature the value that one in a hundred rows has.
        count: Number of rows.

    """
    random = np.random.default_rng(spec.seed)
    drawn = {}
    for name in spec.inputs:
        values = pd.Series(random.choice(rows[name].to_numpy(), count))
        if name in rare:
            is_rare = random.random(count) < RARE_SHARE
            values = values.mask(is_rare, rare[name])
        drawn[name] = values
    return pd.DataFrame(drawn)


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
    values = column.dropna()
    low = values.min()
    high = values.max()
    middle = values.median()
    spread = float(high) - float(low) or 1.0
    near = [low, high, middle, 0, float(low) - spread, float(high) + spread]
    if own_kind == "double":
        near += [np.nextafter(value, np.inf) for value in (low, high, middle)]
        near += [np.nextafter(value, -np.inf) for value in (low, high, middle)]
        return [float(value) for value in (*near, *ends)]
    if kind == "boolean":
        return ends
    inside = [min(max(int(value), ends[0]), ends[1]) for value in near]
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
    words = {"double": "null", "string": "text that it was not trained on"}
    for kind, value in UNSEEN_VALUES.items():
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
