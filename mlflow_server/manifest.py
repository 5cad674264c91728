"""What a registered version holds for serving, and how its bytes are trusted.

Each file has its SHA-256 as a tag of the version: a reader checks it before anything parses a byte.
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
Loader = Literal["mlflow.onnx", "mlflow.sklearn", "mlflow.xgboost", "mlflow.lightgbm"]
MODEL_FILES: dict[Loader, str] = {
    "mlflow.onnx": ONNX_FILE,
    "mlflow.sklearn": SKOPS_FILE,
    "mlflow.xgboost": "model.ubj",
    "mlflow.lightgbm": "model.lgb",
}
"""MLflow's loader modules that a version may name, and the file that each reads: data only."""
CONTRACT_FILE = "serving.json"
DIGEST_TAG = "sha256."
SCORE = "score"
"""Name of the ONNX output: float32 [N], the probability of class 1 or the number predicted; of
many classes [N, K], the probability of each."""
DTYPES: dict[InputType, str] = {
    "int64": "int64",
    "double": "float64",
    "string": "object",
}
"""Of NumPy's array that a model is given of a feature."""
SCORE_DIGITS = 6
SCALE = 1e6
"""Digits of an answer, of its log line, and of the scores that threshold and monitor compare."""


class Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex"
    )


class StoredFeature(Frozen):
    """name: as Feast's answer has it. field: its name in the hash."""

    name: str
    kind: FeatureType
    field: bytes


class StoredView(Frozen):
    """One Redis hash per entity: `prefix`, type, size and bytes of each key value, `suffix`.

    name: of the view, as the service knows it. keys: columns of the request, in the order of the
    hash's name. time: field with the event time. state: Redis key of JSON, whose `time` says up to
    when the view is online. ttl_us: age in microseconds above which a value is null; 0: never.
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

    They are those of the request, and every stored feature by its name and as `VIEW__FEATURE`.
    sha256: of its `feature_repo.on_demand.function_source`.
    """

    module: str = Field(pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)+$")
    function: str
    sha256: str
    outputs: dict[str, FeatureType]


class LookupSpecification(Frozen):
    """How a worker reads the version's features online, without Feast; written at registration.

    Every byte of Feast's encoding that a reader depends on stands in it, as Feast made it.
    feast: version that wrote it. online_store: type in feature_store.yaml.
    unsupported: why only Feast's own reader can answer; views and functions are then empty.
    request_data: what on-demand functions take from a request beside the key, and its types.
    """

    feast: str
    online_store: str
    unsupported: str | None = None
    views: tuple[StoredView, ...] = ()
    functions: tuple[OnDemandFunction, ...] = ()
    request_data: dict[str, FeatureType] = {}


class ModelManifest(Frozen):
    """`serving.json`: how to call the model and what to do without features.

    ONNX inputs are one rank-1 column per feature, of the types that core.spec.INPUTS says.
    The prediction is 1 where `rounded(score) >= threshold`; of many `classes` the first with the
    largest rounded score; without either it is the rounded score itself.
    """

    model: str
    loader: Loader = "mlflow.onnx"
    entity_key: EntityKey
    outcome_key: dict[str, KeyType] = {}
    """What a request may send to name the label's row that it is about; see `ModelSpec`."""
    feature_service: str
    features: dict[str, FeatureType]
    defaults: dict[str, int | float | str]
    """Medians (numbers) and modes (strings) of the training frame, as the model takes them."""
    background: tuple[dict[str, int | float | str | None], ...] = ()
    """Rows of the training frame, without keys, as the model takes them (null: NaN): what a
    prediction is explained against. Empty in a version from before: `defaults` is the one row."""
    nullable: tuple[str, ...] = ()
    """Features that were null in the training frame: so may a client's be."""
    population: Population | None = None
    threshold: float | None = None
    classes: tuple[str, ...] = ()
    as_of: str
    """ISO 8601, UTC: the training run's `as_of`."""
    lookup: LookupSpecification

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
        """How many classes there are; 0 where numbers are predicted."""
        return len(self.classes) or (0 if self.threshold is None else 2)


def rounded_one(score: float, threshold: float | None) -> float:
    """Return a score as it is answered; NaN and infinity stay.

    Of classes it has 6 decimals, a number 6 significant digits, as its decimals depend on its unit.
    """
    if threshold is None:
        return float(f"{score:.{SCORE_DIGITS}g}")
    scaled = score * SCALE
    return round(scaled) / SCALE if math.isfinite(scaled) else score


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_tags(folder: Path) -> dict[str, str]:
    """Tags for the version whose served files lie in `folder`."""
    tags = {}
    for name in (*MODEL_FILES.values(), CONTRACT_FILE):
        if (folder / name).is_file():
            tags[DIGEST_TAG + name] = sha256(folder / name)
    return tags


def served_files(tags: Mapping[str, str]) -> dict[str, str]:
    """Files that a version with these tags is served by, and where they lie below its artifacts."""
    places = {name: name for name in MODEL_FILES.values() if DIGEST_TAG + name in tags}
    places = places or {ONNX_FILE: ONNX_FILE}
    return places | {CONTRACT_FILE: f"extra_files/{CONTRACT_FILE}"}


def wrong_files(folder: Path, tags: Mapping[str, str]) -> str:
    """Say which served files in `folder` have other bytes than those registered; empty: none."""
    wrong = []
    for name in served_files(tags):
        expected = tags.get(DIGEST_TAG + name, "no digest")
        digest = sha256(folder / name) if (folder / name).is_file() else "no file"
        if digest != expected:
            text = f"sha256 is {digest[:12]}, registered was {expected[:12]}"
            wrong.append(f"{name}: {text}")
    return "; ".join(wrong)
