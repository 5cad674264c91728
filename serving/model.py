"""A version: what MLflow says of it, its copy on this machine, and in memory, tried first."""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import onnxruntime as ort
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from core.errors import DataError
from core.packages import package_version
from core.settings import PROJECT, Settings
from core.shapley import COALITIONS, Columns, shapley_values
from core.spec import INPUTS, ModelSpec
from core.timestamps import microseconds
from mlflow_server.roles import Deployed
from mlflow_server.served_model import (
    CONTRACT_FILE,
    DIGEST_TAG,
    ONNX_FILE,
    SCORE,
    ServedModel,
    rounded_one,
    served_files,
    wrong_files,
)
from serving.errors import ModelRefusedError
from serving.features import FeatureSource
from serving.lookup import RowReader
from serving.pyfunc_process import PyfuncProcess

Role = Literal["production", "challenger", "shadow", "previous"]
ROLES: tuple[Role, ...] = get_args(Role)
SEARCH = "/api/2.0/mlflow/registered-models/search?max_results=1000"
ORIGIN_FILE = "origin.json"
Row = Mapping[str, Any]
IN_PROCESS = 128
"""Rows that a version's own process scores at once for an explanation, and its coalitions."""
Score = float | list[float]
"""A list of many classes: the probability of each."""
Session: TypeAlias = ort.InferenceSession | PyfuncProcess
DTYPES: dict[str, Any] = {"int64": np.int64, "double": np.float64, "string": np.object_}


@dataclass(frozen=True)
class RegisteredModel:
    """created: milliseconds since 1970. percent: of the entities, which the challenger answers."""

    created: int
    versions: dict[Role, str]
    percent: int = 0


def registered_models(answer: dict[str, Any]) -> dict[str, RegisteredModel]:
    return {row["name"]: _model(row) for row in answer.get("registered_models", [])}


def _model(row: dict[str, Any]) -> RegisteredModel:
    aliases = {
        alias["alias"]: str(alias["version"]) for alias in row.get("aliases", [])
    }
    tags = {tag["key"]: tag.get("value", "") for tag in row.get("tags", [])}
    versions = {role: aliases[role] for role in ROLES if role in aliases}
    percent = Deployed(aliases, tags).percent("challenger")
    return RegisteredModel(int(row["creation_timestamp"]), versions, percent)


class Origin(BaseModel):
    """Which version a copy is of: numbers begin at 1 again for a model made anew (`created`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: int
    digests: dict[str, str]


class LocalCopies:
    """Folders `GYRE_HOME/serving/models/MODEL/VERSION/`, which `serving.fetch` renames into place.

    Several processes may use them at once.
    """

    def __init__(self, settings: Settings, model: str) -> None:
        self.folder = settings.home / "serving" / "models" / model
        self.online_store = (settings.online_store or {}).get("type")
        """What their versions are to be of, see `open_version`."""

    def path(self, version: str) -> Path:
        return self.folder / version

    def origin(self, version: str) -> Origin | None:
        """Where the copy of `version` is from; None: there is no complete copy."""
        try:
            return Origin.model_validate_json(
                (self.path(version) / ORIGIN_FILE).read_bytes()
            )
        except (OSError, ValueError):
            return None

    def newest(self) -> list[str]:
        """Return the versions that are here, the one last in production first."""
        complete = [path for path in self.folder.glob("*") if self.origin(path.name)]
        complete.sort(key=os.path.getmtime, reverse=True)
        return [path.name for path in complete]

    def mark_production(self, version: str) -> None:
        """Have a start without MLflow take this version: its folder is the newest."""
        with suppress(OSError):
            os.utime(self.path(version))

    def remove(self, version: str) -> None:
        shutil.rmtree(self.path(version), ignore_errors=True)

    def keep_only(self, versions: set[str]) -> None:
        """Remove other copies and what an ended fetch left, but not the one last in production."""
        kept = versions.union(self.newest()[:1])
        for path in self.folder.glob("*"):
            if path.name not in kept:
                self.remove(path.name)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    version: str
    origin: Origin
    contract: ServedModel
    session: Session
    features: FeatureSource

    @property
    def problem(self) -> str | None:
        """Why it cannot score now."""
        return self.session.problem if isinstance(self.session, PyfuncProcess) else None

    @property
    def thread(self) -> Executor | None:
        """Where it scores; None: wherever it is called."""
        return self.session.thread if isinstance(self.session, PyfuncProcess) else None

    async def close(self) -> None:
        close(self.session)


def close(session: Session) -> None:
    if isinstance(session, PyfuncProcess):
        session.close()


def score(session: Session, contract: ServedModel, rows: Sequence[Row]) -> list[Score]:
    """Score of each row, in order. May be no number: `wrong` says."""
    scores: list[Score] = session.run([SCORE], columns(contract, rows))[0].tolist()
    return scores


def columns(contract: ServedModel, rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    """Return what the model takes of `rows`, by feature."""
    feed = {}
    for name, kind in contract.features.items():
        column = [row[name] for row in rows]
        if kind == "timestamp":  # a default is a number already
            column = [microseconds(v) if isinstance(v, datetime) else v for v in column]
        feed[name] = np.array(column, dtype=DTYPES[INPUTS[kind]])
    return feed


def explain(model: LoadedModel, features: Row, prediction: float) -> dict[str, Any]:
    """Return model, `expected`: the mean score of the background, `contributions`, largest first.

    The last two add up to the score; of many classes to that of the predicted one. Scores
    thousands of rows, in parts that a prediction can wait for.
    """
    contract, thread = model.contract, model.thread
    part = COALITIONS if thread is None else IN_PROCESS

    def score(rows: Columns) -> NDArray[Any]:
        found: list[Any] = []
        for at in range(0, len(rows[next(iter(rows))]), part):
            feed = {name: column[at : at + part] for name, column in rows.items()}
            run = partial(model.session.run, [SCORE], feed)
            found += run() if thread is None else thread.submit(run).result()
        return np.concatenate(found)

    background = columns(contract, contract.background or [contract.defaults])
    mean, moved = shapley_values(score, columns(contract, [features]), background, part)
    place, scale = (
        (int(prediction), 0.5) if contract.classes else (0, contract.threshold)
    )
    parts = dict(zip(contract.features, moved[:, place].tolist(), strict=True))
    contributions = {
        name: {"value": features[name], "contribution": rounded_one(parts[name], scale)}
        for name in sorted(parts, key=lambda name: -abs(parts[name]))
    }
    expected = rounded_one(float(mean[place]), scale)
    return {
        "model": contract.model,
        "expected": expected,
        "contributions": contributions,
    }


def rounded_score(contract: ServedModel, found: Score) -> Score:
    if isinstance(found, list):
        return [rounded_one(part, 0.5) for part in found]
    return rounded_one(found, contract.threshold)


def outcome(contract: ServedModel, result: Score) -> dict[str, Any]:
    """What is said by a rounded score, as the log has it; of many classes the most probable one."""
    if isinstance(result, list):
        largest = max(result)
        prediction = float(result.index(largest))
        return {
            "probability": largest,
            "prediction": prediction,
            "probabilities": result,
        }
    if contract.threshold is None:
        return {"probability": None, "prediction": result}
    return {
        "probability": result,
        "prediction": 1.0 if result >= contract.threshold else 0.0,
    }


def wrong(contract: ServedModel, found: Score) -> str:
    """Say what a score is not and should be; empty if it can be answered with."""
    if contract.classes or isinstance(found, list):
        parts = found if isinstance(found, list) else []
        fits = len(parts) == len(contract.classes) and all(
            0.0 <= part <= 1.0 for part in parts
        )
        return "" if fits else f"not probabilities of {len(contract.classes)} classes"
    if contract.threshold is None:
        return "" if math.isfinite(found) else "not a finite number"
    return "" if 0.0 <= found <= 1.0 else "not a probability"


def open_version(
    folder: Path, tags: dict[str, str], spec: ModelSpec, online_store: str | None = None
) -> tuple[ServedModel, Session]:
    """Check the digests, then parse, compare and warm up what lies in `folder`.

    online_store: its type, where it is not that of feature_store.yaml.

    Raises ModelRefusedError, and what onnxruntime and pydantic raise.
    """
    if altered := wrong_files(folder, tags):
        raise ModelRefusedError("; ".join(altered))
    contract = ServedModel.model_validate_json((folder / CONTRACT_FILE).read_bytes())
    _check_contract(contract, spec, online_store)
    if contract.file not in served_files(tags):
        raise ModelRefusedError(
            f"{CONTRACT_FILE}: {contract.file} is not of the files registered"
        )
    if contract.loader == "mlflow.onnx":
        session: Session = _onnx_session(folder, contract)
    else:
        digest, trusted = tags[DIGEST_TAG + contract.file], spec.serving.trusted_types
        session = PyfuncProcess(folder, contract, digest, trusted)
    warm = score(session, contract, [contract.defaults])
    what = wrong(contract, warm[0]) if len(warm) == 1 else "not one score"
    if what:
        close(session)
        raise ModelRefusedError(f"{contract.file}: the defaults score {warm}, {what}")
    return contract, session


def _onnx_session(folder: Path, contract: ServedModel) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    file = str(folder / ONNX_FILE)
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = {i.name: i.type for i in session.get_inputs()}
    expected = {
        name: f"tensor({INPUTS[kind]})" for name, kind in contract.features.items()
    }
    if inputs != expected:
        raise ModelRefusedError(
            f"{ONNX_FILE}: inputs are {inputs}, the contract says {expected}"
        )
    return session


def _check_contract(
    contract: ServedModel, spec: ModelSpec, online_store: str | None
) -> None:
    """Refuse a contract of another model, or one not written for this project as it is here."""
    lookup, asked = contract.lookup, (spec.name, spec.entity_key)
    if (found := (contract.model, contract.entity_key)) != asked:
        raise ModelRefusedError(
            f"{CONTRACT_FILE}: model and entity are {found}, not {asked}"
        )
    if (contract.threshold is None, contract.classes) != (
        spec.threshold is None,
        spec.classes,
    ):
        its = " ".join([spec.task, *spec.classes])
        raise ModelRefusedError(
            f"{CONTRACT_FILE}: it is of no {its}, as {spec.name} is"
        )
    store = yaml.safe_load(
        (PROJECT / "feature_repo" / "feature_store.yaml").read_bytes()
    )
    for what, written, here in (
        ("Feast", lookup.feast, package_version("feast")),
        (
            "online store",
            lookup.online_store,
            online_store or store["online_store"]["type"],
        ),
    ):
        if written != here:
            text = f"is of {what} {written}, here is {here}: train again"
            raise ModelRefusedError(
                f"{CONTRACT_FILE}: its look-up specification {text}"
            )
    if contract.loader != "mlflow.onnx":
        _check_image("mlflow", f"a model of {contract.loader}")
    if lookup.unsupported is not None:
        _check_image("feast", f"Feast's own reader ({lookup.unsupported})")
    try:
        if lookup.unsupported is None:
            RowReader(lookup, tuple(contract.features))
    except DataError as exc:
        raise ModelRefusedError(f"{CONTRACT_FILE}: {exc}") from exc


def _check_image(package: str, what: str) -> None:
    if find_spec(package) is None:
        raise ModelRefusedError(f"{CONTRACT_FILE}: {what} needs the image serving-full")
