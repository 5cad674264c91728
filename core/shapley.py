"""By how much each feature moves a row's score away from the mean score of a background.

A coalition of features is worth the mean score of the background with the row's values of these
features put in place (interventional: Lundberg and Lee 2017).
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import comb
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

COALITIONS = 1024
"""All of ten features; of more features a sample."""
NOISE = 1e-7
"""Of the largest score: a contribution below it is float32's rounding, and 0."""
Columns: TypeAlias = Mapping[str, NDArray[Any]]


def shapley_values(
    score: Callable[[Columns], Any],
    row: Columns,
    background: Columns,
    most: int = COALITIONS,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the background's mean score [K] and contributions [features, K]; the sum is the score.

    row: columns [1]. background: columns [B] of the same names. score: of columns [N], in which no
    row stands twice, the scores [N] or [N, K], or a list of these; called once. most: coalitions.
    """
    members, weights = coalitions(len(row), most)
    differs = np.array([background[name] != row[name] for name in row]).T
    replaced = (members & differs[:, None]).reshape(-1, len(row))
    base = np.repeat(np.arange(len(differs), dtype=">u4"), len(members))
    coded = np.hstack(
        [np.packbits(replaced, axis=1), base.view(np.uint8).reshape(-1, 4)]
    )
    rows = coded.view(f"V{coded.shape[1]}").ravel()
    _, first, place = np.unique(rows, return_index=True, return_inverse=True)
    columns = {
        name: np.where(
            replaced[first, feature], row[name], background[name][base[first]]
        )
        for feature, name in enumerate(row)
    }
    scores = np.asarray(score(columns), np.float64).reshape(len(first), -1)
    worth = scores[place].reshape(len(differs), len(members), -1).mean(axis=0)
    found = weights.T @ worth
    return worth[0], np.where(np.abs(found) > NOISE * np.abs(worth).max(), found, 0.0)


@lru_cache
def coalitions(
    features: int, most: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return coalitions [C, features], the empty one first, and what the worth of each counts.

    Exact (Shapley 1953) where all are at most `most`; else those of random orders of joining and
    of their reverses (Strumbelj and Kononenko 2014; Mitchell and others 2022), the same each time.
    """
    if 2**features <= most:
        members = (np.arange(2**features)[:, None] >> np.arange(features) & 1).astype(
            bool
        )
        others = members.sum(axis=1, keepdims=True) - members
        share = np.array(
            [1 / (features * comb(features - 1, n)) for n in range(features)]
        )
        return members, np.where(members, 1, -1) * share[others]
    orders = np.tile(np.arange(features), (max(1, most // (2 * (features + 1))), 1))
    orders = np.random.default_rng(0).permuted(orders, axis=1)
    joins = np.concatenate([orders, features - 1 - orders])[:, None]
    step = np.arange(features + 1)[:, None]
    gains = np.equal(step, joins + 1) * 1.0 - np.equal(step, joins)
    return (joins < step).reshape(-1, features), gains.reshape(-1, features) / len(
        joins
    )
