"""A loaded version: its contract, its session, and its scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from core.spec import INPUTS
from core.timestamps import microseconds
from mlflow_server.foreign_graph import ForeignGraph
from mlflow_server.manifest import DTYPES, SCORE, ModelManifest
from serving.features.source import FeatureSource
from serving.versions.copies import Origin
from serving.versions.pyfunc_process import PyfuncSession

Row = Mapping[str, Any]
Score = float | list[float]
"""A number, or for many classes the probability of each."""


class OnnxSession:
    """An ONNX file in this process."""

    problem = None
    thread = None

    def __init__(self, file: Path, contract: ModelManifest) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        session = ort.InferenceSession(str(file), options, providers=providers)
        self.run = session.run
        if contract.interface:
            graph = ForeignGraph(session, contract.interface, contract.class_count)
            self.run = graph.run

    def close(self) -> None:
        """Do nothing: a session ends with the last reference to it."""


Session = OnnxSession | PyfuncSession
"""Scores rows."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    version: str
    origin: Origin
    contract: ModelManifest
    session: Session
    features: FeatureSource


def score(
    session: Session, contract: ModelManifest, rows: Sequence[Row]
) -> list[Score]:
    """Return the score of each row, in order. It may be no number: see `score_problem`."""
    scores: list[Score] = session.run([SCORE], columns(contract, rows))[0].tolist()
    return scores


def columns(contract: ModelManifest, rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    """Return the values of `rows` by feature, as the model takes them."""
    arrays = {}
    for name, kind in contract.features.items():
        values = [row[name] for row in rows]
        if kind == "timestamp":  # a default is a number already
            values = [
                microseconds(value) if isinstance(value, datetime) else value
                for value in values
            ]
        arrays[name] = np.array(values, dtype=DTYPES[INPUTS[kind]])
    return arrays


def score_problem(contract: ModelManifest, result: Score) -> str:
    """Say why a score is no answer; empty if it is one."""
    if contract.classes or isinstance(result, list):
        probabilities = result if isinstance(result, list) else []
        is_complete = len(probabilities) == len(contract.classes)
        if is_complete and all(_is_probability(value) for value in probabilities):
            return ""
        return f"not probabilities of {len(contract.classes)} classes"
    if contract.threshold is None:
        return "" if math.isfinite(result) else "not a finite number"
    return "" if _is_probability(result) else "not a probability"


def _is_probability(value: float) -> bool:
    return 0.0 <= value <= 1.0
