"""A model that was trained elsewhere, as MLflow keeps it: its files, its inputs, and how it is opened.

The MLmodel file could name any loader, class or code, so it only says which library, which file and
which inputs. What opens the file is written anew: MLflow's own loader, for a class that is listed here.
A pickle can run any code while it is opened: it is opened where the installation says so, by a
process that does nothing else.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import mlflow.artifacts
import numpy as np
from mlflow.models import Model
from mlflow.types import DataType, Schema

from core.errors import GyreError, RegistryError, SettingsError
from core.packages import with_extra
from core.spec import InputType
from core.spec.training import ESTIMATOR_TYPES
from mlflow_server.api.connection import translated
from mlflow_server.manifest import ModelClass, ModelColumn, ModelTensor, SignatureType
from mlflow_server.model.pyfunc import BOOSTERS
from mlflow_server.model.zipped import RUNS_CODE, pyfunc_module, require_trust

FLAVORS = ("onnx", "xgboost", "lightgbm", "sklearn", "python_function")
"""Flavours of MLflow that can be opened. The first one that a model has is taken: nearly all have the
last one, too."""
PICKLES = (".pkl", ".pickle", ".cloudpkl", ".joblib")
PICKLE = (
    "is a pickle, which can run any code while it is opened: log it again in a data format "
    "(ONNX, or skops)"
)
CLASSES: dict[str, tuple[str, ...]] = {
    "xgboost": get_args(ModelClass),
    "lightgbm": (
        "lightgbm.basic.Booster",
        "lightgbm.sklearn.LGBMClassifier",
        "lightgbm.sklearn.LGBMRegressor",
        "lightgbm.sklearn.LGBMRanker",
    ),
}
"""Classes of boosting libraries that MLflow may make of a file."""
LIGHTGBM_TYPES = (*ESTIMATOR_TYPES["lightgbm"], "lightgbm.sklearn.LGBMRanker")
"""Types that LightGBM's own estimators have in a file of skops: data, and its text of the trees."""
INPUT_TYPES: dict[str, InputType] = {
    "boolean": "int64",
    "integer": "int64",
    "long": "int64",
    "float": "double",
    "double": "double",
    "string": "string",
}
"""Types of an MLflow signature as inputs of a model."""
TENSOR_TYPES: dict[str, SignatureType] = {
    "bool": "boolean",
    "int32": "integer",
    "int64": "long",
    "float32": "float",
    "float64": "double",
    "object": "string",
    "str": "string",
}
"""Types of an MLflow tensor, as those of columns."""


@dataclass(frozen=True)
class ForeignModel:
    """A model in a folder, not opened yet.

    Attributes:
        folder: The folder that MLflow saved.
        flavor: Flavour of MLflow that opens it.
        library: Library that it was made by.
        file: Its file in the folder; empty: the whole folder.
        model_class: Class that MLflow makes of the file of a boosting library.
        columns: Its inputs, in order; empty: the signature is a tensor without names of columns.
        optional: Names of further inputs, which it can do without.
        tensors: Matrices of a signature of tensors.
        tensor_type: Type of these matrices.

    """

    folder: Path
    flavor: str
    library: str
    file: str
    model_class: str
    columns: tuple[ModelColumn, ...]
    optional: tuple[ModelColumn, ...] = ()
    tensors: tuple[ModelTensor, ...] = ()
    tensor_type: SignatureType = "double"

    @property
    def inputs(self) -> dict[str, InputType]:
        """Name and type of each input that it needs, in order."""
        return {column.name: INPUT_TYPES[column.kind] for column in self.columns}

    @property
    def is_pickle(self) -> bool:
        return Path(self.file).suffix in PICKLES


def pandas_type(kind: SignatureType) -> Any:
    """Return the type that MLflow itself has a column of a signature in."""
    return DataType[kind].to_pandas()


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
        RegistryError: No library here opens it, or it has no signature that rows of features fit.

    """
    model = Model.load(str(folder))
    flavors = [name for name in FLAVORS if name in model.flavors]
    if not flavors:
        other_flavors = ", ".join(model.flavors) or "none"
        raise RegistryError(
            f"expected a model of {', '.join(FLAVORS)}, found {other_flavors}: convert it to ONNX, and "
            "log it by mlflow.onnx"
        )
    if model.signature is None or model.signature.inputs is None:
        raise RegistryError(
            "the model has no signature: log it again with one (mlflow.models.infer_signature)"
        )
    flavor = flavors[0]
    library = next(
        (name for name in model.flavors if name != "python_function"), "pyfunc"
    )
    options = model.flavors[flavor]
    file = ""
    if flavor != "python_function":
        file = str(options.get("pickled_model") or options["data"])
        if not (folder / file).resolve().is_relative_to(folder.resolve()):
            raise RegistryError(f"the file of the model, {file}, is not in its folder")
    model_class = str(options.get("model_class", BOOSTERS.get(flavor, "")))
    schema = model.signature.inputs
    foreign = ForeignModel(
        folder=folder,
        flavor=flavor,
        library=library,
        file=file,
        model_class=model_class,
        columns=(),
    )
    if schema.is_tensor_spec():
        tensors, tensor_type = _tensors(schema)
        return replace(foreign, tensors=tensors, tensor_type=tensor_type)
    optional_names = {column.name for column in schema.inputs if not column.required}
    columns = _columns(schema)
    return replace(
        foreign,
        columns=tuple(
            column for column in columns if column.name not in optional_names
        ),
        optional=tuple(column for column in columns if column.name in optional_names),
    )


def _columns(schema: Schema) -> list[ModelColumn]:
    """Return the columns of a signature.

    Raises:
        RegistryError: One has no name, or a type that no feature has.

    """
    columns = []
    for position, column in enumerate(schema.inputs):
        kind = getattr(column.type, "name", str(column.type))
        if column.name is None:
            raise RegistryError(
                f"input {position} of the model's signature has no name: log it with a frame "
                "(mlflow.models.infer_signature)"
            )
        if kind not in INPUT_TYPES:
            raise RegistryError(
                f"input {column.name} is {kind}: a feature is one of {', '.join(INPUT_TYPES)}"
            )
        columns.append(ModelColumn(name=str(column.name), kind=kind))
    return columns


def _tensors(schema: Schema) -> tuple[tuple[ModelTensor, ...], SignatureType]:
    """Return the matrices of a signature, and their type.

    Raises:
        RegistryError: One is no matrix, or has a type that no feature has.

    """
    tensors = []
    kinds = set()
    for tensor in schema.inputs:
        name = str(tensor.name or "")
        if len(tensor.shape) > 2:  # noqa: PLR2004  (rows and columns)
            raise RegistryError(
                f"input {name} of the model is a tensor of the shape {tensor.shape}: expected a "
                "matrix with a row for each prediction"
            )
        width = int(tensor.shape[-1]) if len(tensor.shape) > 1 else 1
        tensors.append(ModelTensor(name=name, width=width))
        kinds.add("str" if tensor.type.kind == "U" else np.dtype(tensor.type).name)
    if len(kinds) > 1 or not kinds <= TENSOR_TYPES.keys():
        raise RegistryError(
            f"the tensors of the model's signature are {', '.join(sorted(kinds))}: expected one of "
            f"{', '.join(TENSOR_TYPES)} for all"
        )
    return tuple(tensors), TENSOR_TYPES[kinds.pop()]


def opened(foreign: ForeignModel, trusted: Sequence[str], folder: Path) -> Any:
    """Open a model by MLflow's pyfunc, of a description that is written anew.

    Args:
        foreign: The model.
        trusted: Types that skops may make, by the spec of the project.
        folder: An empty folder for the description.

    Returns:
        MLflow's PyFuncModel. It predicts probabilities where a class of scikit-learn has them.

    Raises:
        SettingsError: It runs code while it is opened, and the installation opens none; or a library
            is missing.
        RegistryError: Its library cannot open it.

    """
    pyfunc = pyfunc_module()
    name = foreign.file or "the model"
    if foreign.is_pickle:
        require_trust(f"{foreign.file} {PICKLE}")
    place = foreign.folder
    if foreign.flavor == "python_function":
        require_trust(RUNS_CODE)
    else:
        place = folder
        describe_anew(foreign, trusted, folder)
    try:
        return pyfunc.load_model(str(place))
    except ModuleNotFoundError as exc:
        raise SettingsError(f"{exc}: {with_extra('boosters')}") from exc
    except Exception as exc:
        reason = " ".join(str(exc).split())[:300]
        remedy = ""
        if "ntrusted" in reason:
            missing_types = _untrusted(foreign, trusted)
            reason = "skops does not know all of its types"
            remedy = f"; if you trust them, add to [serving]: trusted_types = {missing_types}"
        raise RegistryError(
            f"{name}: {foreign.library} cannot open it: {reason}{remedy}"
        ) from exc


def describe_anew(
    foreign: ForeignModel,
    trusted: Sequence[str],
    folder: Path,
    method: str = "predict",
) -> None:
    """Write the description of a model beside a copy of its file.

    Args:
        foreign: The model.
        trusted: Types that skops may make.
        folder: An empty folder.
        method: Method of scikit-learn's model that MLflow's pyfunc calls.

    Raises:
        RegistryError: MLflow would make another class of the file than those of its library.

    """
    known_classes = CLASSES.get(foreign.flavor)
    if known_classes and foreign.model_class not in known_classes:
        raise RegistryError(
            f"{foreign.file}: expected {' or '.join(known_classes)}, found the class "
            f"{foreign.model_class}"
        )
    file = foreign.file
    if foreign.flavor == "onnx":
        # With the files of its weights, which lie beside it.
        source = (foreign.folder / file).parent
        shutil.copytree(source, folder, dirs_exist_ok=True)
        file = Path(file).name
    else:
        shutil.copy(foreign.folder / file, folder)
        file = Path(file).name
    description = Model(signature=Model.load(str(foreign.folder)).signature)
    types = [*trusted, *(LIGHTGBM_TYPES if foreign.flavor == "lightgbm" else ())]
    description.add_flavor(
        foreign.flavor,
        data=file,
        pickled_model=file,
        model_class=foreign.model_class or None,
        serialization_format="cloudpickle" if foreign.is_pickle else "skops",
        skops_trusted_types=types,
        providers=["CPUExecutionProvider"],
    )
    # MLflow's loader of graphs takes their file, the others the folder.
    place = {"data": file} if foreign.flavor == "onnx" else {"model_path": file}
    pyfunc = pyfunc_module()
    pyfunc.add_to_model(
        description,
        loader_module=f"mlflow.{foreign.flavor}",
        predict_fn=method,
        **place,
    )
    description.save(str(folder / "MLmodel"))


def _untrusted(foreign: ForeignModel, trusted: Sequence[str]) -> list[str]:
    """Return the types of a file of skops that nobody trusts yet."""
    import skops.io  # noqa: PLC0415  (with scikit-learn: readers of the registry do without)

    found = skops.io.get_untrusted_types(file=foreign.folder / foreign.file)
    return sorted({*found}.difference(trusted))


def class_names(foreign: ForeignModel) -> list[str] | None:
    """Return the names of a model's classes, in its order, without running any code of it.

    Returns:
        Names; empty: it predicts numbers; None: its files do not say.

    """
    if foreign.flavor == "python_function" or foreign.is_pickle:
        return None
    with TemporaryDirectory(prefix="gyre-describe-") as folder:
        try:
            raw = opened(foreign, (), Path(folder)).get_raw_model()
        except GyreError:  # skops wants its types trusted, for example
            return None
    if foreign.flavor == "onnx":
        return _classes_of_graph(raw)
    if hasattr(raw, "classes_"):
        return [str(each) for each in np.asarray(raw.classes_).tolist()]
    return [str(number) for number in range(_class_count(raw))]


def objective_of(model: Any) -> str:
    """Return what a Booster was trained for; empty: it is another model."""
    if hasattr(model, "save_config"):  # XGBoost's
        return str(json.loads(model.save_config())["learner"]["objective"]["name"])
    if hasattr(model, "dump_model"):
        words = str(model.dump_model(num_iteration=1).get("objective", "none"))
        return words.partition(" ")[0]
    return ""


def _class_count(model: Any) -> int:
    """Return the number of classes of a Booster; 0 if it, or another model, predicts numbers."""
    objective = objective_of(model)
    if objective.startswith("multi:"):
        learner = json.loads(model.save_config())["learner"]
        return int(learner["learner_model_param"]["num_class"])
    if objective.startswith("multiclass"):
        return int(model.num_model_per_iteration())
    return 2 if objective.startswith("binary") else 0


def _classes_of_graph(session: Any) -> list[str] | None:
    """Return numbers for the classes of a graph that has labels beside scores, else None."""
    outputs = session.get_outputs()
    kinds = [each.type for each in outputs]
    if len(outputs) < 2 or kinds[0] not in ("tensor(int64)", "tensor(string)"):  # noqa: PLR2004
        return None
    shape = outputs[-1].shape
    is_known = len(shape) == 2 and isinstance(shape[1], int)  # noqa: PLR2004
    return [str(number) for number in range(shape[1])] if is_known else None
