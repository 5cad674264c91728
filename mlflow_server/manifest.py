"""The manifest of a version, `serving.json`, and the digests of the files that serving reads.

Each file has its SHA-256 as a tag of the version: a reader checks it before it parses a byte.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from core.spec import EntityKey, FeatureType, InputType, KeyType, Population
from core.spec.training import Task

ONNX_FILE = "model.onnx"
SKOPS_FILE = "model.skops"
Loader = Literal[
    "mlflow.onnx",
    "mlflow.sklearn",
    "mlflow.xgboost",
    "mlflow.lightgbm",
    "mlflow.pyfunc",
]
MODEL_FILES: dict[Loader, str] = {
    "mlflow.onnx": ONNX_FILE,
    "mlflow.sklearn": SKOPS_FILE,
    "mlflow.xgboost": "model.ubj",
    "mlflow.lightgbm": "model.lgb",
    "mlflow.pyfunc": "model.zip",
}
"""Files of a model by MLflow's loader module, for all loaders that a version may name. All are data,
but `model.zip`, which has code: `mlflow_server.model.zipped`."""
CONTRACT_FILE = "serving.json"
DIGEST_TAG = "sha256."
SCORE = "score"
"""Name of the ONNX output, float32: [N] has the probability of class 1 or the predicted number,
[N, K] the probability of each of many classes."""
DTYPES: dict[InputType, str] = {
    "int64": "int64",
    "double": "float64",
    "string": "object",
}
"""NumPy's dtype of a feature, as a model takes it."""
SCORE_DIGITS = 6
"""Digits of an answer, of its log line, and of scores that threshold and monitoring compare."""
SCALE = 1e6


class Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex"
    )


SignatureType = Literal["boolean", "integer", "long", "float", "double", "string"]
"""A type of MLflow's signatures that a feature can have."""


ModelClass = Literal[
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRegressor",
    "xgboost.sklearn.XGBRanker",
    "xgboost.sklearn.XGBRFClassifier",
    "xgboost.sklearn.XGBRFRegressor",
]
"""Classes that MLflow may make of a file of XGBoost."""


class ModelColumn(Frozen):
    """An input of a model, as its signature has it."""

    name: str
    kind: SignatureType


class ModelTensor(Frozen):
    """A matrix that a model takes. width: Its columns; -1: as many as there are."""

    name: str
    width: int


class ModelInterface(Frozen):
    """How a model that was trained elsewhere is asked.

    Attributes:
        columns: Its inputs, in its order.
        tensors: Matrices that the columns form, one beside the other; empty: it takes a frame.
        output: The output of an ONNX graph that has the scores.
        model_class: Class of a file of XGBoost; None: a Booster.
        positions: The column of its answer that each class has; empty: the answer has their order.

    """

    columns: tuple[ModelColumn, ...]
    tensors: tuple[ModelTensor, ...] = ()
    output: str = ""
    model_class: ModelClass | None = None
    positions: tuple[int, ...] = ()


class StoredFeature(Frozen):
    """A feature in Redis. name: its name in Feast's answer. field: its name in the hash."""

    name: str
    kind: FeatureType
    field: bytes


class StoredView(Frozen):
    """A view in Redis: one hash for each entity.

    Between `prefix` and `suffix` its name has type, size and bytes of each key value.

    Attributes:
        name: Name of the view in the feature service.
        keys: Columns of the request, in their order in the name of a hash.
        prefix: First bytes of the name of a hash.
        suffix: Last bytes of the name of a hash.
        time: Field with the event time.
        state: Redis key of a JSON whose `time` is the online watermark of the view; empty: the view
            is plain Feast's, which keeps none there.
        ttl_us: Age in microseconds above which a value is null; 0: never.
        features: Features of the view.

    """

    name: str
    keys: dict[str, KeyType]
    prefix: bytes
    suffix: bytes
    time: bytes
    state: str
    ttl_us: int
    features: tuple[StoredFeature, ...]


class OnDemandFunction(Frozen):
    """An on-demand view: a function of the installed project, called with columns.

    The columns are those of the request, and every stored feature by its name and as
    `VIEW__FEATURE`. sha256: Digest of its `feature_repo.on_demand.function_source`.
    """

    module: str = Field(pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)+$")
    function: str
    sha256: str
    outputs: dict[str, FeatureType]


class LookupSpecification(Frozen):
    """How a worker reads the version's features online, without Feast; written at registration.

    It has every byte of Feast's encoding that a reader depends on, as Feast made it.

    Attributes:
        feast: Version of Feast that wrote it.
        online_store: Type of the online store in feature_store.yaml.
        unsupported: Why only Feast's own reader can answer; views and functions are then empty.
        views: Views in Redis.
        functions: On-demand views.
        request_data: Columns of a request beside the key that on-demand functions take, with types.

    """

    feast: str
    online_store: str
    unsupported: str | None = None
    views: tuple[StoredView, ...] = ()
    functions: tuple[OnDemandFunction, ...] = ()
    request_data: dict[str, FeatureType] = {}


class ModelManifest(Frozen):
    """`serving.json`: how to call the model, and its answer without features.

    ONNX inputs are one rank-1 column for each feature, of the types in core.spec.INPUTS.
    With a `threshold` the prediction is 1 if `rounded(score) >= threshold`; with many `classes` it
    is the first with the largest rounded score; without either it is the rounded score.
    """

    model: str
    loader: Loader = "mlflow.onnx"
    entity_key: EntityKey
    outcome_key: dict[str, KeyType] = {}
    """Columns by which a request may name the label's row that it is about; see `ModelSpec`."""
    feature_service: str
    """Empty: a request brings all features."""
    features: dict[str, FeatureType]
    defaults: dict[str, int | float | str]
    """Medians (numbers) and modes (strings) of the training frame, as the model takes them."""
    background: tuple[dict[str, int | float | str | None], ...] = ()
    """Rows of the training frame, without keys, as the model takes them (null: NaN). Explanations
    compare a prediction with them. Older versions have none: `defaults` is the one row then."""
    nullable: tuple[str, ...] = ()
    """Features that were null in the training frame: a client may send null for them."""
    population: Population | None = None
    threshold: float | None = None
    classes: tuple[str, ...] = ()
    as_of: str
    """`as_of` of the training run, ISO 8601 in UTC."""
    lookup: LookupSpecification
    interface: ModelInterface | None = None
    """None: the model was trained here, and takes the features in their order."""

    @property
    def file(self) -> str:
        return MODEL_FILES[self.loader]

    @property
    def format(self) -> Literal["onnx", "native"]:
        return "onnx" if self.loader == "mlflow.onnx" else "native"

    @property
    def task(self) -> Task:
        if self.classes:
            return "multiclass"
        return "regression" if self.threshold is None else "classification"

    @property
    def class_count(self) -> int:
        """Number of classes; 0 if the model predicts numbers."""
        return len(self.classes) or (0 if self.threshold is None else 2)


def rounded_one(score: float, threshold: float | None) -> float:
    """Return a score as serving answers it; NaN and infinity stay.

    A probability has 6 decimals; a number has 6 significant digits, as its decimals depend on its
    unit.
    """
    if threshold is None:
        return float(f"{score:.{SCORE_DIGITS}g}")
    scaled = score * SCALE
    return round(scaled) / SCALE if math.isfinite(scaled) else score


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_tags(folder: Path) -> dict[str, str]:
    """Return tags for the version whose served files lie in `folder`."""
    tags = {}
    for name in (*MODEL_FILES.values(), CONTRACT_FILE):
        if (folder / name).is_file():
            tags[DIGEST_TAG + name] = sha256(folder / name)
    return tags


def served_files(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the served files of a version with these tags, and their places among its artifacts."""
    places = {name: name for name in MODEL_FILES.values() if DIGEST_TAG + name in tags}
    places = places or {ONNX_FILE: ONNX_FILE}
    return places | {CONTRACT_FILE: f"extra_files/{CONTRACT_FILE}"}


def wrong_files(folder: Path, tags: Mapping[str, str]) -> str:
    """Return a text about served files in `folder` that differ from the registered; empty: none."""
    wrong = []
    for name in served_files(tags):
        expected = tags.get(DIGEST_TAG + name, "no digest")
        digest = sha256(folder / name) if (folder / name).is_file() else "no file"
        if digest != expected:
            text = f"sha256 is {digest[:12]}, expected {expected[:12]}"
            wrong.append(f"{name}: {text}")
    return "; ".join(wrong)
