"""What a registered version holds for serving, and how its bytes are trusted.

The files lie in the version's artifact folder (`registry.PLACES`). Each has its SHA-256 as a tag of
the version, so a reader checks the digest before anything parses a byte.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from mlflow_server.lookup import LookupSpecification  # noqa: TC001
from stack.spec import EntityKey, FeatureType, Population  # noqa: TC001  (pydantic reads the annotations)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

ONNX_FILE = "model.onnx"
CONTRACT_FILE = "serving.json"
DIGEST_TAG = "sha256."
SCORE = "score"
"""Name of the ONNX output: float32 [N], the probability of class 1 or the number predicted."""
SCORE_DIGITS, SCALE = 6, 1e6
"""Digits of an answer, of its log line, and of what threshold and monitor compare them with."""


class ServedModel(BaseModel):
    """`serving.json`: how to call `model.onnx` and what to do without features.

    ONNX inputs are one rank-1 column per feature, of the types below (int64, float64, string).
    The prediction is 1 where `rounded(score) >= threshold`; without a threshold it is the rounded
    score itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    entity_key: EntityKey
    feature_service: str
    features: dict[str, FeatureType]
    defaults: dict[str, int | float | str]
    """Medians (numbers) and modes (strings) of the training frame."""
    nullable: tuple[str, ...] = ()
    """Features that were null in the training frame: so may a client's be."""
    population: Population
    threshold: float | None = None
    as_of: str
    """ISO 8601, UTC: the training run's `as_of`."""
    lookup: LookupSpecification


def at_most_1(scores: NDArray[Any], threshold: float | None) -> NDArray[Any]:
    """Scores [N] of classes, those within 1e-5 above 1 as 1.

    Versions exported before ONNX did so sum shares in float32, and the proof let them pass.
    """
    above = (scores > 1) & (scores < 1 + 1e-5)
    return scores if threshold is None else np.where(above, 1, scores)


def rounded(scores: ArrayLike, threshold: float | None) -> NDArray[np.float64]:
    """Scores [N] as they are answered: classes to 6 decimals, numbers to 6 significant digits.

    A number may have any unit: in euros 0.0000001 is nothing, in millions of them a coin.
    """
    exact = np.asarray(scores, np.float64)
    if threshold is None:
        return np.array([rounded_one(score, threshold) for score in exact.tolist()])
    return np.round(exact, SCORE_DIGITS)


def rounded_one(score: float, threshold: float | None) -> float:
    """As `rounded`, to the bit, in a tenth of the time; what is no number stays what it is."""
    if threshold is None:
        return float(f"{score:.{SCORE_DIGITS}g}")
    scaled = score * SCALE
    return round(scaled) / SCALE if math.isfinite(scaled) else score


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_tags(folder: Path) -> dict[str, str]:
    """Tags for the version whose served files lie in `folder`."""
    return {DIGEST_TAG + name: sha256(folder / name) for name in (ONNX_FILE, CONTRACT_FILE)}


def wrong_files(folder: Path, tags: dict[str, str]) -> list[str]:
    """Return one line per served file in `folder` whose bytes are not those registered."""
    wrong = []
    for name in (ONNX_FILE, CONTRACT_FILE):
        expected = tags.get(DIGEST_TAG + name, "no digest")
        found = sha256(folder / name) if (folder / name).is_file() else "no file"
        if found != expected:
            wrong.append(f"{name}: sha256 is {found[:12]}, registered was {expected[:12]}")
    return wrong
