"""The proof that an exported model scores as its scikit-learn pipeline does.

Real rows alone are not enough: some conversions pass them all and fail on permuted rows, or one
step beside a tree's threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from stack.spec import MISSING
from training.metrics import predict
from training.onnx_export import BOOSTING, names_of, pipeline_scores
from training.scoring import DTYPES, score

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sklearn.pipeline import Pipeline

    from stack.spec import FeatureType

PERMUTED_ROWS = 50_000
PROBED_THRESHOLDS = 3_000
PROBED_ROWS = 500
LARGEST_DIFFERENCE = 1e-5
"""Of two probabilities. Of two numbers: as a share of scikit-learn's, or of the mean size of its
scores of the real rows where that is more. float32 itself is 6e-8 of a number coarse.
"""
EXTREMES = (0, -1, 1, 2**24 + 1, -(2**31), 2**31, 10**12)
UNKNOWN = ("never seen", "", MISSING)


@dataclass(frozen=True)
class Proof:
    """How far ONNX and scikit-learn agree; `passed` only without a reason against it.

    flips: None where there is no threshold.
    """

    rows: dict[str, int]
    largest_difference: float
    flips: int | None
    passed: bool
    reasons: tuple[str, ...]


def prove(
    pipeline: Pipeline,
    onnx_bytes: bytes,
    frame: pd.DataFrame,
    seed: int,
    *,
    features: Mapping[str, FeatureType],
    threshold: float | None = 0.5,
) -> Proof:
    """Score real and made-up rows with both engines and compare; never raises for a difference.

    `frame` holds real rows with the columns `features`. A flip is a row whose
    `round(score, 6) >= threshold` differs; threshold: None where a number is predicted.
    """
    rows: dict[str, int] = {}
    largest, flips, reasons, usual = 0.0, 0, [], 1.0
    try:
        for kind, probe in _probes(pipeline, frame[list(features)], features, seed):
            expected = pipeline_scores(pipeline, probe)
            found = score(onnx_bytes, features, probe)
            if threshold is None and kind == "real":
                usual = float(np.abs(expected).mean()) or 1.0
            gaps = np.abs(found - expected) / np.maximum(np.abs(expected), usual)
            gap = float(np.where(np.isnan(gaps), 1.0, gaps).max())  # NaN is as wrong as can be
            flipped = 0 if threshold is None else int(
                np.sum(predict(found, threshold) != predict(expected, threshold))
            )  # fmt: skip
            rows[kind] = len(probe)
            if gap > LARGEST_DIFFERENCE or flipped:
                also = "" if threshold is None else f", {flipped} flips"
                reasons.append(f"{kind}: largest difference {gap:.3g}{also}")
            largest, flips = max(largest, gap), flips + flipped
    except Exception as exc:  # noqa: BLE001  (whatever an engine says is a reason not to trust it)
        reasons.append(f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}")
        largest = 1.0
    counted = None if threshold is None else flips
    return Proof(rows, largest, counted, not reasons, tuple(reasons))


def _probes(
    pipeline: Pipeline, frame: pd.DataFrame, features: Mapping[str, FeatureType], seed: int
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (kind, rows): real, permuted, null, unknown, extreme, and around tree thresholds."""
    chance = np.random.default_rng(seed)
    some = frame.sample(PROBED_ROWS, replace=True, random_state=seed).reset_index(drop=True)
    yield "real", frame
    mixed = {name: chance.choice(frame[name].to_numpy(), PERMUTED_ROWS) for name in frame}
    yield "permuted", pd.DataFrame(mixed)
    doubles, integers = names_of(features, "double"), names_of(features, "int64")
    if doubles:
        nulls = [*([name] for name in doubles), doubles]  # each alone, then all
        yield "null", pd.concat([some.assign(**dict.fromkeys(n, np.nan)) for n in nulls])
    if strings := names_of(features, "string"):
        unknown = [some.assign(**dict.fromkeys(strings, value)) for value in UNKNOWN]
        yield "unknown", pd.concat(unknown)
    numbers = [(name, value) for name in integers + doubles for value in EXTREMES]
    yield "extreme", _one_each(frame, numbers, features, chance)
    if thresholds := _thresholds(pipeline[-1], integers + doubles):
        picked = [int(at) for at in chance.permutation(len(thresholds))[:PROBED_THRESHOLDS]]
        # Those that float32 cannot hold are where the engines may differ: in many rows each.
        inexact = [at for at, (_, t) in enumerate(thresholds) if float(np.float32(t)) != t]
        picked += (inexact * PROBED_ROWS)[:PROBED_THRESHOLDS]
        around = [
            (name, value)
            for name, threshold in (thresholds[at] for at in picked)
            for value in _neighbours(threshold, whole=features[name] == "int64")
        ]
        yield "threshold", _one_each(frame, around, features, chance)


def _thresholds(estimator: Any, numbers: list[str]) -> list[tuple[str, float]]:
    """(feature, threshold) of every split on a number; the numbers are the trees' first columns."""
    trees: list[Any] = []
    if isinstance(estimator, RandomForestClassifier | RandomForestRegressor):
        trees = [(tree.tree_.feature, tree.tree_.threshold) for tree in estimator.estimators_]
    elif isinstance(estimator, BOOSTING):
        nodes = [p.nodes[p.nodes["is_leaf"] == 0] for made in estimator._predictors for p in made]  # noqa: SLF001
        trees = [(node["feature_idx"], node["num_threshold"]) for node in nodes]
    found = {(int(f), float(t)) for tree in trees for f, t in zip(*tree, strict=True)}
    splits = [(f, t) for f, t in sorted(found) if 0 <= f < len(numbers) and np.isfinite(t)]
    return [(numbers[feature], threshold) for feature, threshold in splits]


def _neighbours(threshold: float, *, whole: bool) -> list[float]:
    """Values one step of float32 (and of float64) around, or the two whole numbers beside it."""
    if whole:
        return [float(np.floor(threshold)), float(np.floor(threshold)) + 1]
    near, far = np.float32(threshold), np.float32(np.inf)
    single = (np.nextafter(near, -far), near, np.nextafter(near, far))
    return [threshold, *map(float, single), float(np.nextafter(threshold, np.inf))]


def _one_each(
    frame: pd.DataFrame,
    values: Sequence[tuple[str, float]],
    features: Mapping[str, FeatureType],
    chance: np.random.Generator,
) -> pd.DataFrame:
    """Real rows, each with one value replaced."""
    rows = frame.iloc[chance.integers(0, len(frame), len(values))].reset_index(drop=True)
    names = np.array([name for name, _ in values])
    numbers = np.array([value for _, value in values], np.float64)
    for name in set(names):
        here = names == name
        column = rows[name].to_numpy(copy=True)
        column[here] = numbers[here].astype(DTYPES[features[name]])
        rows[name] = column
    return rows
