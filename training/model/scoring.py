"""Scores of a served model: of its file, or of a registered version on other rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from core.errors import NoChampionError
from core.settings import Settings
from core.spec import InputType, ModelSpec
from mlflow_server.api.registry import Registry
from mlflow_server.foreign_graph import ForeignGraph
from mlflow_server.manifest import DTYPES, SCORE, ModelManifest
from mlflow_server.model.pyfunc import ModelFile, read_version
from training.data.frame import feature_columns, with_features
from training.evaluation.metrics import Scored
from training.model.separate import SeparateModel, separate_model


def score(
    model: ModelFile, inputs: Mapping[str, InputType], rows: pd.DataFrame
) -> NDArray[np.float64]:
    """Return the scores of a served model: float64 [N], for K classes [N, K]."""
    session = open_session(model)
    scores: NDArray[np.float64] = session.run([SCORE], session_inputs(inputs, rows))[0]
    return scores.astype(np.float64)


def scored_rows(
    spec: ModelSpec, model: ModelFile, threshold: float | None, rows: pa.Table
) -> Scored:
    """Score rows of a frame with a served model."""
    return Scored(score(model, spec.inputs, feature_columns(spec, rows)), threshold)


def open_session(
    model: ModelFile,
) -> onnxruntime.InferenceSession | ForeignGraph | ModelFile | SeparateModel:
    if model.loader == "mlflow.pyfunc":
        return separate_model(model)
    if model.loader != "mlflow.onnx":
        return model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.content, options, providers=["CPUExecutionProvider"]
    )
    if model.interface is None:
        return session
    return ForeignGraph(session, model.interface, model.classes)


def session_inputs(
    inputs: Mapping[str, InputType], rows: pd.DataFrame
) -> dict[str, Any]:
    """Return the inputs of a session: one array for each, in its type."""
    return {name: rows[name].to_numpy(DTYPES[kind]) for name, kind in inputs.items()}


def version_scores(
    settings: Settings, spec: ModelSpec, version: str, rows: pa.Table
) -> Scored:
    """Score `rows` (a frame) with `version` through its own features, in the order of `rows`.

    Raises:
        NoChampionError: The version has another task, other entities or other request data.

    """
    registry = Registry(settings)
    registered = registry.version(spec.name, version)
    manifest, model = read_version(registry, registered, spec.trusted_types)
    problem = ""
    request_data = manifest.lookup.request_data
    is_other_task = (manifest.threshold is None) != (spec.threshold is None)
    version_spec = as_trained(spec, manifest)
    is_same_service = version_spec.feature_service == spec.feature_service
    has_columns = is_same_service and manifest.features.items() <= spec.features.items()
    if is_other_task or manifest.classes != spec.classes:
        problem = f"has another task than {' '.join([spec.task, *spec.classes])}"
    elif manifest.entity_key != spec.entity_key:
        their_key = ", ".join(manifest.entity_key)
        problem = f"has the entity {their_key}, not {', '.join(spec.entity_key)}"
    elif not has_columns and not request_data.keys() <= {*rows.column_names}:
        problem = f"takes request data that the rows lack: {', '.join(request_data)}"
    if problem:
        raise NoChampionError(f"version {version} of {spec.name} {problem}")
    if not has_columns:
        keys = [*spec.entity_key, "event_timestamp", "label", *request_data]
        rows = with_features(settings, version_spec, rows.select(keys))
    return scored_rows(version_spec, model, manifest.threshold, rows)


def as_trained(spec: ModelSpec, manifest: ModelManifest) -> ModelSpec:
    """Return the spec with features, task, entity and population of a version."""
    return spec.model_copy(
        update={
            "task": manifest.task,
            "classes": manifest.classes,
            "threshold": manifest.threshold,
            "entity_key": manifest.entity_key,
            "features": manifest.features,
            "feature_service": manifest.feature_service,
            "population": manifest.population,
            "audit": {},
        }
    )
