"""Which members of the population have a label, and how the others differ from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import pyarrow as pa

    from stack.spec import ModelSpec

TOLERATED = 0.05
"""Share of members without a label up to which no reason has to be stated."""
SHOWN = 3
"""Features that are named: those whose values differ most."""
BINS = 10


@dataclass(frozen=True)
class Coverage:
    """Members of the population at one snapshot. unlabelled: rows of those without a label.

    text: how many have none, and how they differ; empty if every member has a label.
    refusal: why nothing is trained, and what to do; empty if they are few or a reason is stated.
    """

    members: int
    unlabelled: pa.Table
    text: str = ""
    refusal: str = ""


def coverage(
    spec: ModelSpec, labelled: pa.Table, members: pa.Table, reason: str | None
) -> Coverage:
    """Compare the rows of one snapshot that have a label with all members of the population.

    labelled: a frame. members: its columns but `label`. reason: why some have no label.
    """
    key = [*spec.entity_key]
    others = members.join(labelled.select(key), key, join_type="left anti")
    others = others.sort_by([(name, "ascending") for name in key]).select(members.column_names)
    if not others.num_rows:
        return Coverage(members.num_rows, others)
    found = sorted(
        (_contrast(name, labelled[name].to_pandas(), others[name].to_pandas())
         for name in spec.features), reverse=True,
    )  # fmt: skip
    stated = f" ({reason})" if reason else ""
    text = (
        f"{others.num_rows:,} of {members.num_rows:,} members of the population have no "
        f"{spec.label}{stated}; they differ most in {'; '.join(line for _, line in found[:SHOWN])}"
    )
    if reason or others.num_rows <= TOLERATED * members.num_rows:
        return Coverage(members.num_rows, others, text)
    remedy = f'a stated reason: Label(unlabelled="…") in {spec.dataset}.py'
    refusal = f"{text}. Expected a label for each member, a narrower [population], or {remedy}"
    return Coverage(members.num_rows, others, text, refusal)


def _contrast(name: str, labelled: pd.Series[Any], others: pd.Series[Any]) -> tuple[float, str]:
    """Return the total variation distance of a feature's values, 0 to 1, and both in words."""
    both = pd.concat([labelled, others], keys=["with", "without"])
    if pd.api.types.is_numeric_dtype(both):
        both = (both.rank(pct=True) * BINS).round().astype(str)  # a null is a value of its own
    shares = [both[of].value_counts(normalize=True) for of in ("with", "without")]
    distance = float(shares[0].sub(shares[1], fill_value=0).abs().sum() / 2)
    return distance, f"{name}: {_summary(labelled)} with a label, {_summary(others)} without"


def _summary(values: pd.Series[Any]) -> str:
    nulls = f" ({values.isna().mean():.0%} null)" if values.isna().any() else ""
    if pd.api.types.is_numeric_dtype(values):
        return f"mean {values.mean():.4g}{nulls}"
    return f"most often {values.mode()[0]}{nulls}"
