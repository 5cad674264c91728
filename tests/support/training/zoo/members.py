"""What a model of the zoo is, and the rows that all of them take."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ROWS = 3_000
TRAIN = 1_000
NUMBERS = ["amount", "visits"]
PACKAGES = {"pip_requirements": ["mlflow"]}
"""Named, as MLflow would find them out by opening each model in another process."""


class Member(NamedTuple):
    """A model, and how it is saved.

    Attributes:
        name: Its name in the zoo.
        task: classification, regression or multiclass.
        flavor: Module of MLflow that saves it.
        model: The model, or the keyword arguments of `save_model` that name it.
        rows: Rows of its inputs, in the types of its signature.
        scores: What it answers: the probability of class 1, the number, or those of each class.
        options: Further arguments of `save_model`.
        signature: Rows by which the signature is inferred, if others than `rows`.
        classes: Names of many classes, in the order of `scores`.
        refusal: What the message of a refusal has; empty: it is adopted.
        features: Features as the spec has them, by name, where another type than the signature's.
        trusted: Types of skops that its owner has to trust.

    """

    name: str
    task: str
    flavor: str
    model: Any
    rows: pd.DataFrame
    scores: NDArray[np.float64]
    options: Mapping[str, Any] = {}
    signature: Any = None
    classes: tuple[str, ...] = ()
    refusal: str = ""
    features: Mapping[str, str] = {}
    trusted: Sequence[str] = ()


MAKERS: dict[str, Callable[[], Member]] = {}
"""What makes a model, by its name."""


def member(make: Callable[[], Member]) -> Callable[[], Member]:
    MAKERS[make.__name__] = make
    return make


def numbers(seed: int = 1, scale: float = 1.0, middle: float = 0.0) -> pd.DataFrame:
    """Return rows of two float64 columns."""
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {name: middle + scale * random.normal(size=ROWS) for name in NUMBERS}
    )


def outcome(rows: pd.DataFrame, count: int = 2) -> NDArray[np.int64]:
    """Return classes that depend on the rows, of numbers in the middle of each column."""
    ranks = rows[NUMBERS].rank(pct=True).sum(axis=1) / 2
    noise = np.random.default_rng(9).normal(scale=0.1, size=len(rows))
    return np.clip((ranks + noise) * count, 0, count - 1).astype(np.int64).to_numpy()


def amount(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return a number that depends on the rows."""
    ranks = rows[NUMBERS].rank(pct=True).to_numpy()
    return 3 * ranks[:, 0] ** 2 + ranks[:, 1]
