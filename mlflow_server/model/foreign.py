"""A model that was trained elsewhere, as MLflow keeps it: its files, its inputs, and how it is opened.

The MLmodel file could name any loader, class or code, so it only says which library and which file.
A pickle can run any code while it is opened: it is opened where the installation says so, by a
process that does nothing else.
"""

import pickle
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import mlflow.artifacts
from mlflow.models import Model

from core.errors import RegistryError, SettingsError
from core.packages import with_extra
from core.spec import InputType
from mlflow_server.api.connection import translated
from mlflow_server.model.pyfunc import TRUSTED, ModelFile
from mlflow_server.model.zipped import require_trust, zipped

FLAVORS = ("onnx", "xgboost", "lightgbm", "sklearn", "python_function")
"""Flavours of MLflow that can be opened. The first one that a model has is taken: nearly all have the
last one, too."""
PICKLES = (".pkl", ".pickle", ".cloudpkl", ".joblib")
PICKLE = (
    "is a pickle, which can run any code while it is opened: log it again in a data format "
    "(ONNX, or skops)"
)
TYPES: dict[str, InputType] = {
    "boolean": "int64",
    "integer": "int64",
    "long": "int64",
    "float": "double",
    "double": "double",
    "string": "string",
}
"""Types of an MLflow signature as inputs of a model."""


class ForeignModel(NamedTuple):
    """A model in a folder, not opened yet.

    Attributes:
        flavor: Flavour of MLflow that opens it.
        library: Library that it was made by.
        file: Its file, or folder.
        inputs: Name and type of each input, in order; without names the signature is a tensor.
        width: Number of inputs.

    """

    flavor: str
    library: str
    file: Path
    inputs: dict[str, InputType]
    width: int


def fetch(address: str, source: str, folder: Path) -> Path:
    """Return the folder of a model; of an MLflow it is downloaded.

    Args:
        address: MLflow's address.
        source: A folder, or an address of MLflow: `runs:/…`, `models:/NAME/7`.
        folder: An existing folder for the download.

    Raises:
        SettingsError: There is no such folder.
        RegistryError: MLflow does not answer, or has no such model.

    """
    if ":/" not in source:
        if not (Path(source) / "MLmodel").is_file():
            raise SettingsError(f"expected a folder with a file MLmodel, no {source}")
        return Path(source)
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    with translated(f"download {source}"):
        path = mlflow.artifacts.download_artifacts(source, dst_path=str(folder))
    return Path(path)


def describe(folder: Path) -> ForeignModel:
    """Read which library opens a model, and its inputs.

    Raises:
        RegistryError: No library here opens it, or it has no signature.

    """
    model = Model.load(str(folder))
    flavors = [name for name in FLAVORS if name in model.flavors]
    if not flavors:
        other_flavors = ", ".join(model.flavors) or "none"
        raise RegistryError(
            f"expected a model of {', '.join(FLAVORS)}, found {other_flavors}: convert it to ONNX, and "
            "log it by mlflow.onnx"
        )
    if model.signature is None:
        raise RegistryError(
            "the model has no signature: log it again with one (mlflow.models.infer_signature)"
        )
    flavor = flavors[0]
    library = next(
        (name for name in model.flavors if name != "python_function"), "pyfunc"
    )
    file = folder
    if flavor != "python_function":
        options = model.flavors[flavor]
        file = folder / str(options.get("pickled_model") or options["data"])
    schema = model.signature.inputs
    if schema.is_tensor_spec():
        width = int(schema.inputs[0].shape[-1])
        return ForeignModel(flavor, library, file, {}, width)
    inputs = {}
    for column in schema.inputs:
        kind = TYPES.get(column.type.name)
        if kind is None:
            raise RegistryError(f"input {column.name} is {column.type.name}")
        inputs[str(column.name)] = kind
    return ForeignModel(flavor, library, file, inputs, len(inputs))


def opened(
    foreign: ForeignModel,
    trusted: tuple[str, ...],
    *,
    is_classifier: bool,
) -> Any:
    """Open a model by its library.

    Args:
        foreign: The model.
        trusted: Types that skops may make, by the spec of the project.
        is_classifier: Whether it gives probabilities.

    Returns:
        A fitted model of the library; bytes of ONNX; LightGBM's Booster; the file of a zipped folder.

    Raises:
        SettingsError: It is a pickle, and the installation opens none, or a library is missing.
        RegistryError: The library cannot open it.

    """
    file = foreign.file
    if foreign.flavor == "python_function":
        return ModelFile(zipped(file), "mlflow.pyfunc")
    is_pickle = file.suffix in PICKLES
    if is_pickle:
        require_trust(f"{file.name} {PICKLE}")
    try:
        if is_pickle:
            return _unpickled(file)
        if foreign.flavor == "onnx":
            return file.read_bytes()
        if foreign.flavor == "sklearn":
            skops = import_module("skops.io")
            return skops.load(file, trusted=[*TRUSTED, *trusted])
        library = import_module(foreign.flavor)
        if foreign.flavor == "lightgbm":
            return library.Booster(model_file=str(file))
        model = library.XGBClassifier() if is_classifier else library.XGBRegressor()
        model.load_model(file)
        model.get_booster().feature_names = None  # it gets a matrix
    except ModuleNotFoundError as exc:
        raise SettingsError(f"{exc}: {with_extra('boosters')}") from exc
    except Exception as exc:
        reason = " ".join(str(exc).split())[:300]
        remedy = ""
        if foreign.flavor == "sklearn":
            remedy = "; types that you trust: trusted_types of [serving]"
        raise RegistryError(
            f"{file.name}: {foreign.flavor} cannot open it: {reason}{remedy}"
        ) from exc
    return model


def _unpickled(file: Path) -> Any:
    with file.open("rb") as stream:
        return pickle.load(stream)  # noqa: S301  (the installation allows it)
