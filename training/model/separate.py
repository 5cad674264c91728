"""A model that a process of its own opens and scores, as opening it runs code."""

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlflow_server.model.pyfunc import ModelFile

_opened: list[ModelFile] = []
"""In the process of its own: the one model."""


class SeparateModel:
    """A session as those of ONNX Runtime. Its process ends with it.

    Raises:
        Exception: Whatever the model raises while it is opened.

    """

    def __init__(self, model: ModelFile) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, mp_context=spawn)
        # Without what this process has opened.
        self._process.submit(_open, replace(model)).result()

    def run(
        self, outputs: Sequence[str], columns: Mapping[str, Any]
    ) -> list[NDArray[np.float64]]:
        """Return scores of the rows in `columns`, [N] or [N, K]."""
        return self._process.submit(_run, outputs, dict(columns)).result()


@lru_cache(maxsize=2)
def separate_model(model: ModelFile) -> SeparateModel:
    """Return the model's process: one for all that a program scores by it, and by its champion."""
    return SeparateModel(model)


def _open(model: ModelFile) -> None:
    _ = model.loaded
    _opened.append(model)


def _run(
    outputs: Sequence[str], columns: Mapping[str, Any]
) -> list[NDArray[np.float64]]:
    return _opened[0].run(outputs, columns)
