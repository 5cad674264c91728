"""A version in memory: its contract and its ONNX session, proved before it may answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mlflow_server.served_model import CONTRACT_FILE, ONNX_FILE, SCORE, ServedModel, wrong_files
from serving.errors import ModelRefusedError
from serving.features import FeatureSource
from stack.spec import ModelSpec

Value = int | float | str
Row = dict[str, Value]
DTYPES: dict[str, Any] = {"int64": np.int64, "double": np.float64, "string": np.object_}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One version; never changed, only replaced as a whole."""

    version: str
    contract: ServedModel
    session: ort.InferenceSession
    features: FeatureSource
    loaded_at: datetime
    """Since when this process serves it, UTC."""


def score(session: ort.InferenceSession, contract: ServedModel, rows: Sequence[Row]) -> list[float]:
    """Probability of class 1 for each row, in order. May be no number: the caller checks."""
    feed = {
        name: np.array([row[name] for row in rows], dtype=DTYPES[kind])
        for name, kind in contract.features.items()
    }
    result: list[float] = session.run([SCORE], feed)[0].tolist()
    return result


def open_version(
    folder: Path, tags: dict[str, str], spec: ModelSpec
) -> tuple[ServedModel, ort.InferenceSession]:
    """Check the digests, then parse, compare and warm up what lies in `folder`.

    Raises:
        ModelRefusedError: what is wrong. onnxruntime's and pydantic's errors pass through.

    """
    if wrong := wrong_files(folder, tags):
        raise ModelRefusedError("; ".join(wrong))
    contract = ServedModel.model_validate_json((folder / CONTRACT_FILE).read_bytes())
    found, asked = (contract.model, contract.entity_key), (spec.name, spec.entity_key)
    if found != asked:
        raise ModelRefusedError(f"{CONTRACT_FILE}: model and entity are {found}, not {asked}")
    session = _session(folder / ONNX_FILE)
    inputs = {i.name: i.type for i in session.get_inputs()}
    expected = {name: f"tensor({kind})" for name, kind in contract.features.items()}
    if inputs != expected:
        raise ModelRefusedError(f"{ONNX_FILE}: inputs are {inputs}, the contract says {expected}")
    warm = score(session, contract, [contract.defaults])
    if len(warm) != 1 or not 0.0 <= warm[0] <= 1.0:
        raise ModelRefusedError(f"{ONNX_FILE}: the defaults score {warm}, not a probability")
    return contract, session


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
