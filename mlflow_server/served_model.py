"""What a registered version holds for serving, and how its bytes are trusted.

The files lie in the version's artifact folder (`registry.PLACES`). Each has its SHA-256 as a tag of
the version, so a reader checks the digest before anything parses a byte.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from stack.spec import FeatureType, Population  # noqa: TC001  (pydantic reads the annotations)

if TYPE_CHECKING:
    from pathlib import Path

ONNX_FILE = "model.onnx"
CONTRACT_FILE = "serving.json"
DIGEST_TAG = "sha256."
SCORE = "score"
"""Name of the ONNX output: float32 [N], the probability of class 1."""
SCORE_DIGITS = 6
"""Decimals of an answer, of its log line, and of what the monitor compares them with."""


class ServedModel(BaseModel):
    """`serving.json`: how to call `model.onnx` and what to do without features.

    ONNX inputs are one rank-1 column per feature, of the types below (int64, float64, string).
    The prediction is 1 where `round(score, 6) >= threshold`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    entity_key: str
    feature_service: str
    features: dict[str, FeatureType]
    defaults: dict[str, int | float | str]
    """Medians (numbers) and modes (strings) of the training frame."""
    population: Population
    threshold: float
    as_of: str
    """ISO 8601, UTC: the training run's `as_of`."""


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
