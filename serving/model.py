"""A version in memory: its contract and its ONNX session, proved before it may answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import yaml

from mlflow_server.served_model import (
    CONTRACT_FILE,
    ONNX_FILE,
    SCORE,
    ServedModel,
    at_most_1,
    wrong_files,
)
from serving.errors import ModelRefusedError
from serving.features import FeatureSource
from serving.local_copies import Origin
from serving.lookup import RowReader
from stack.errors import DataError
from stack.settings import PROJECT
from stack.spec import ModelSpec

Row = dict[str, int | float | str]
DTYPES: dict[str, Any] = {"int64": np.int64, "double": np.float64, "string": np.object_}


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """One version; never changed, only replaced as a whole."""

    version: str
    origin: Origin
    contract: ServedModel
    session: ort.InferenceSession
    features: FeatureSource


def score(session: ort.InferenceSession, contract: ServedModel, rows: Sequence[Row]) -> list[float]:
    """Score of each row, in order. May be no number: `wrong` says."""
    feed = {
        name: np.array([row[name] for row in rows], dtype=DTYPES[kind])
        for name, kind in contract.features.items()
    }
    found = session.run([SCORE], feed)[0]
    result: list[float] = found.tolist()
    if [each for each in result if each > 1]:
        result = at_most_1(found, contract.threshold).tolist()
    return result


def wrong(contract: ServedModel, found: float) -> str:
    """Say what a score is not and should be; empty if it can be answered with."""
    if contract.threshold is None:
        return "" if math.isfinite(found) else "not a finite number"
    return "" if 0.0 <= found <= 1.0 else "not a probability"


def open_version(
    folder: Path, tags: dict[str, str], spec: ModelSpec
) -> tuple[ServedModel, ort.InferenceSession]:
    """Check the digests, then parse, compare and warm up what lies in `folder`.

    Raises:
        ModelRefusedError: what is wrong. onnxruntime's and pydantic's errors pass through.

    """
    if altered := wrong_files(folder, tags):
        raise ModelRefusedError("; ".join(altered))
    contract = ServedModel.model_validate_json((folder / CONTRACT_FILE).read_bytes())
    found = (contract.model, contract.entity_key)
    asked = (spec.name, spec.entity_key)
    if found != asked:
        raise ModelRefusedError(f"{CONTRACT_FILE}: model and entity are {found}, not {asked}")
    if (contract.threshold is None) != (spec.threshold is None):
        raise ModelRefusedError(f"{CONTRACT_FILE}: it is of no {spec.task}, as {spec.name} is")
    _check_lookup(contract)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        str(folder / ONNX_FILE), options, providers=["CPUExecutionProvider"]
    )
    inputs = {i.name: i.type for i in session.get_inputs()}
    expected = {name: f"tensor({kind})" for name, kind in contract.features.items()}
    if inputs != expected:
        raise ModelRefusedError(f"{ONNX_FILE}: inputs are {inputs}, the contract says {expected}")
    warm = score(session, contract, [contract.defaults])
    what = wrong(contract, warm[0]) if len(warm) == 1 else "not one score"
    if what:
        raise ModelRefusedError(f"{ONNX_FILE}: the defaults score {warm}, {what}")
    return contract, session


def _check_lookup(contract: ServedModel) -> None:
    """Refuse a look-up specification that was not written for this project as it is here."""
    lookup = contract.lookup
    settings = yaml.safe_load((PROJECT / "feature_repo" / "feature_store.yaml").read_bytes())
    for what, found, expected in (
        ("Feast", lookup.feast, installed("feast")),
        ("online store", lookup.online_store, settings["online_store"]["type"]),
    ):
        if found != expected:
            raise ModelRefusedError(
                f"{CONTRACT_FILE}: its look-up specification is of {what} {found}, here is "
                f"{expected}: train again"
            )
    try:
        if lookup.unsupported is None:
            RowReader(lookup, tuple(contract.features))
    except DataError as exc:
        raise ModelRefusedError(f"{CONTRACT_FILE}: {exc}") from exc
