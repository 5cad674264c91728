"""The version in production, scored on the challenger's test rows through its own features."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_repo.store import FeatureStore
from mlflow_server.registry import Registry
from mlflow_server.served_model import CONTRACT_FILE, ONNX_FILE, ServedModel, wrong_files
from stack.errors import RegistryError
from training.frame import canonical, features
from training.scoring import score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stack.settings import Settings
    from stack.spec import ModelSpec


def champion_scores(
    settings: Settings, spec: ModelSpec, version: str, rows: pa.Table
) -> NDArray[np.float64]:
    """Score `rows` (a frame) with `version`, float64 [N] in the order of `rows`.

    Raises:
        RegistryError: its files cannot be fetched or are not those registered.

    """
    registry = Registry(settings)
    found = registry.version(spec.name, version)
    with tempfile.TemporaryDirectory(prefix="gyre-") as name:
        folder = Path(name)
        registry.download(found, folder)
        if wrong := wrong_files(folder, found.tags):
            raise RegistryError(f"version {version} of {spec.name}: {'; '.join(wrong)}")
        contract = ServedModel.model_validate_json((folder / CONTRACT_FILE).read_bytes())
        model = (folder / ONNX_FILE).read_bytes()
    theirs = spec.model_copy(
        update={"features": contract.features, "feature_service": contract.feature_service}
    )
    if contract.feature_service != spec.feature_service:
        rows = _through_own_service(settings, theirs, rows)
    return score(model, contract.features, features(theirs, rows))


def _through_own_service(settings: Settings, spec: ModelSpec, rows: pa.Table) -> pa.Table:
    entities = rows.select([spec.entity_key, "event_timestamp", "label"])
    frame = entities.to_pandas()
    frame["as_of"] = entities["event_timestamp"].cast(pa.int64()).to_numpy()
    return canonical(spec, FeatureStore(settings).historical(spec.feature_service, frame))
