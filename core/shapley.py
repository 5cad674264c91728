"""Shapley values: by how much each feature moves a score away from the mean of a background.

The worth of a coalition of features is the mean score of the background rows, with the row's own
values of these features in place of theirs (interventional: Lundberg and Lee 2017).
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import comb
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

COALITIONS = 1024
"""Number of coalitions: all of ten features; with more features it is a sample."""
ROUNDING = 1e-7
"""Share of the largest score: a smaller contribution is a rounding of float32, and counts as 0."""
Columns: TypeAlias = Mapping[str, NDArray[Any]]


def shapley_values(
    score: Callable[[Columns], Any],
    row: Columns,
    background: Columns,
    most: int = COALITIONS,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how much each feature moves a row's score away from the background's mean score.

    Args:
        score: Function from columns [N], in which no row stands twice, to scores [N] or [N, K] or
            a list of these. It is called once.
        row: Columns [1].
        background: Columns [B] of the same names.
        most: Number of coalitions.

    Returns:
        The background's mean score [K] and contributions [features, K]; the sum is the score.

    """
    members, weights = coalitions(len(row), most)
    differs = np.array([background[name] != row[name] for name in row]).T
    # A row for each coalition of each background row: whether the row's own value is in place.
    replaced = (members & differs[:, None]).reshape(-1, len(row))
    base = np.repeat(np.arange(len(differs), dtype=np.uint32), len(members))
    # Each distinct row is scored once. Rows are compared as bytes: one bit for each feature, then
    # the number of the background row.
    bits = np.packbits(replaced, axis=1)
    numbers = base.view(np.uint8).reshape(len(base), -1)
    rows = np.hstack([bits, numbers])
    row_bytes = rows.view(f"V{rows.shape[1]}").ravel()
    _, first, place = np.unique(row_bytes, return_index=True, return_inverse=True)
    columns = {}
    for feature, name in enumerate(row):
        own_values = replaced[first, feature]
        columns[name] = np.where(own_values, row[name], background[name][base[first]])
    scores = np.asarray(score(columns), np.float64).reshape(len(first), -1)
    worth = scores[place].reshape(len(differs), len(members), -1).mean(axis=0)
    contributions = weights.T @ worth
    is_rounding = np.abs(contributions) <= ROUNDING * np.abs(worth).max()
    return worth[0], np.where(is_rounding, 0.0, contributions)


@lru_cache
def coalitions(
    features: int, most: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return coalitions [C, features], the empty one first, and the weight of each one's worth.

    They are all coalitions (exact: Shapley 1953) if these are at most `most`. Else they are those
    of random orders of joining and of their reverses (Strumbelj and Kononenko 2014; Mitchell and
    others 2022), the same each time.
    """
    numbers = np.arange(features)
    if 2**features <= most:
        members = (np.arange(2**features)[:, None] >> numbers & 1).astype(bool)
        other_members = members.sum(axis=1, keepdims=True) - members
        counts = [features * comb(features - 1, size) for size in range(features)]
        share = 1 / np.array(counts)
        return members, np.where(members, 1, -1) * share[other_members]
    orders = np.tile(numbers, (max(1, most // (2 * (features + 1))), 1))
    orders = np.random.default_rng(0).permuted(orders, axis=1)
    joins = np.concatenate([orders, features - 1 - orders])[:, None]
    step = np.arange(features + 1)[:, None]
    members = (joins < step).reshape(-1, features)
    gains = np.equal(step, joins + 1) * 1.0 - np.equal(step, joins)
    return members, gains.reshape(-1, features) / len(joins)
