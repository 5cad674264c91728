"""`python -m training.model.foreign FOLDER`: make a served form of a model that was trained elsewhere.

A process of its own, as opening a foreign model may run code or crash. It reads `request.json` and
`frame.parquet` of the folder, and leaves `result.json` and the served model.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnx
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import (
    BooleanTensorType,
    DoubleTensorType,
    FloatTensorType,
    Int32TensorType,
    Int64TensorType,
    StringTensorType,
)
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from core.errors import GyreError, TrainingError
from core.spec import ModelSpec
from core.user_code import in_one_line
from mlflow_server.manifest import Loader, ModelInterface, SignatureType
from mlflow_server.model.foreign import (
    ForeignModel,
    describe,
    describe_anew,
    fetch,
    opened,
)
from mlflow_server.model.pyfunc import ModelFile
from mlflow_server.model.zipped import zipped
from training.data.frame import feature_columns
from training.model.onnx_export import OPSETS
from training.model.original import Original, class_count
from training.model.probes import (
    DRAWN_ROWS,
    accepted_rows,
    drawn_rows,
    edge_rows,
    nulls_of,
    refused_nulls,
)
from training.model.proof import Proof
from training.model.scoring import open_session, session_inputs

GRAPH_TYPES: dict[SignatureType, Any] = {
    "boolean": BooleanTensorType,
    "integer": Int32TensorType,
    "long": Int64TensorType,
    "float": FloatTensorType,
    "double": DoubleTensorType,
    "string": StringTensorType,
}
LARGEST_DIFFERENCE = 1e-6
"""Of two probabilities; of two numbers the share of the number, or of their mean size if this is
larger. A float32 is exact to 6e-8."""
SUM_DIFFERENCE = 1e-3
"""By which the sum of probabilities may differ from 1: of float16 it is that far from it."""
SLOWER = (
    "it is scored by its library in a process of its own, which is slower than ONNX"
)
RUNS_CODE = "each server runs the model's code, with GYRE_ADOPT_PICKLES=true, and needs its packages"


@dataclass(frozen=True)
class Request:
    """A model to adopt.

    Attributes:
        source: Where it lies.
        address: MLflow's address.
        spec: Spec of the model here.

    """

    source: str
    address: str
    spec: ModelSpec


@dataclass(frozen=True)
class Result:
    """A served form of a model, or why there is none.

    Attributes:
        error: Why there is none; empty: there is one.
        loader: MLflow's module that loads it.
        kind: Library and class that it came as.
        remark: What its served form lacks; empty: nothing.
        proof: How far the served and the original model agree.
        interface: How the served form is asked.

    """

    error: str = ""
    loader: Loader = "mlflow.onnx"
    kind: str = ""
    remark: str = ""
    proof: Proof | None = None
    interface: ModelInterface | None = None


REQUESTS = TypeAdapter(Request)
RESULTS = TypeAdapter(Result)


def convert(request: Request, rows: pd.DataFrame, folder: Path) -> Result:
    """Make the served form of a model, prove that it scores the same, and write it into `folder`.

    Raises:
        GyreError: It cannot be fetched or opened, takes other inputs, or its scores are not those of
            the task.

    """
    spec = request.spec
    download = folder / "download"
    download.mkdir()
    foreign = describe(fetch(request.address, request.source, download))
    description = folder / "described"
    description.mkdir()
    model = opened(foreign, spec.trusted_types, description)
    with threadpool_limits(1):  # threads wait for each other on a busy machine
        original = Original(foreign, model, spec, rows)
        probes = Probes(original, spec, rows)
        for kind in ("real", "drawn"):
            require_scores_of_task(
                spec, probes.scores[kind], may_be_classes=original.has_probabilities
            )
        served = proved_form(original, spec, probes)
        refused = refused_nulls(original.scores, rows, spec.inputs)
    remarks = [*served.remarks]
    remarks += [f"{original.kind} takes no {each}" for each in refused]
    return Result(
        loader=served.file.write(folder),
        kind=original.kind,
        remark="; ".join(remark for remark in remarks if remark),
        proof=served.proof,
        interface=served.file.interface,
    )


class ServedModel(NamedTuple):
    """The form in which a model is served.

    Attributes:
        file: The model.
        proof: How far it agrees with the original.
        remarks: Why no better form is taken, and what this one lacks.

    """

    file: ModelFile
    proof: Proof
    remarks: list[str]


def proved_form(original: Original, spec: ModelSpec, probes: "Probes") -> ServedModel:
    """Return the best form that scores as the original.

    Raises:
        TrainingError: None does.

    """
    remarks = []
    for form in served_forms(original, spec):
        if form.file is None:
            remarks.append(form.remark)
            continue
        proof = probes.prove(form.file)
        if not proof.reasons:
            return ServedModel(form.file, proof, [*remarks, form.remark])
        remarks.append(f"{form.name} scores otherwise ({'; '.join(proof.reasons)})")
    raise TrainingError(f"{original.kind}: {'; '.join(remarks)}")


@dataclass(frozen=True)
class Form:
    """A form in which a model could be served.

    Attributes:
        name: What it is, for people.
        file: The model; None: there is no such form.
        remark: What it lacks, or why there is none.

    """

    name: str
    file: ModelFile | None
    remark: str = ""


def served_forms(original: Original, spec: ModelSpec) -> Iterator[Form]:
    """Yield the forms in which a model can be served, the best first."""
    foreign = original.foreign
    unfilled = ModelFile(
        b"", "mlflow.onnx", class_count(spec), interface=original.interface
    )
    if foreign.flavor == "onnx":
        content = one_file(foreign.folder / foreign.file)
        yield Form("its graph", replace(unfilled, content=content))
    elif foreign.flavor == "xgboost":
        file = replace(
            unfilled, content=xgboost_file(original.raw), loader="mlflow.xgboost"
        )
        yield Form("XGBoost's file", file, SLOWER)
    elif foreign.flavor == "lightgbm":
        yield Form("LightGBM's file", lightgbm_file(original, unfilled), SLOWER)
    elif foreign.flavor == "sklearn":
        if spec.serving.format != "native":
            yield converted(original, unfilled)
        yield skops_form(original, unfilled, spec)
        if foreign.is_pickle:
            content = zipped_pickle(foreign, is_classifier=unfilled.classes > 0)
            file = replace(unfilled, content=content, loader="mlflow.pyfunc")
            yield Form("its pickle", file, f"{SLOWER}; {RUNS_CODE}")
    else:
        file = replace(unfilled, content=zipped(foreign.folder), loader="mlflow.pyfunc")
        yield Form("its folder", file, f"{SLOWER}; {RUNS_CODE}")


def one_file(path: Path) -> bytes:
    """Return a graph with its weights, which may lie beside it.

    Raises:
        TrainingError: It is too large for one file.

    """
    graph = onnx.load(path)
    try:
        content: bytes = graph.SerializeToString()
    except Exception as exc:
        raise TrainingError(f"its graph does not fit into one file: {exc}") from exc
    return content


def xgboost_file(model: Any) -> bytes:
    """Return a model in XGBoost's binary format, as its own class saves it."""
    with TemporaryDirectory(prefix="gyre-xgboost-") as folder:
        file = Path(folder, "model.ubj")
        model.save_model(file)
        return file.read_bytes()


def lightgbm_file(original: Original, unfilled: ModelFile) -> ModelFile:
    """Return the text of LightGBM's trees.

    Raises:
        TrainingError: It takes categories of pandas, which no feature has.

    """
    booster = getattr(original.raw, "booster_", original.raw)
    if booster.pandas_categorical:
        raise TrainingError(
            "it takes columns of pandas' type category, which no feature has: train it on codes "
            "(OrdinalEncoder of scikit-learn)"
        )
    content = booster.model_to_string().encode()
    return replace(unfilled, content=content, loader="mlflow.lightgbm")


def converted(original: Original, unfilled: ModelFile) -> Form:
    """Return scikit-learn's model as ONNX, over inputs of the signature's own types."""
    name = "its conversion to ONNX"
    columns = original.interface.columns
    if takes_columns(original.raw):
        types = [
            (column.name, GRAPH_TYPES[column.kind]([None, 1])) for column in columns
        ]
    else:
        kinds = {column.kind for column in columns}
        # As NumPy makes one matrix of columns of several types.
        kind = kinds.pop() if len(kinds) == 1 else "double"
        types = [("matrix", GRAPH_TYPES[kind]([None, len(columns)]))]
    try:
        graph = _graph(original.raw, types)
        output = graph.graph.output[-1].name
        interface = original.interface.model_copy(
            update={"output": output, "tensors": ()}
        )
        file = replace(
            unfilled,
            content=graph.SerializeToString(deterministic=True),
            interface=interface,
        )
        open_session(file)
    except Exception as exc:  # noqa: BLE001  (converters raise whatever they like)
        return Form(name, None, f"{name} failed ({in_one_line(exc)[:150]})")
    return Form(name, file)


def takes_columns(model: Any) -> bool:
    """Return whether a model begins by choosing columns."""
    while True:
        if isinstance(model, ColumnTransformer):
            return True
        if isinstance(model, Pipeline):
            model = model[0]
        elif hasattr(model, "best_estimator_"):
            model = model.best_estimator_
        else:
            return False


def _graph(model: Any, types: list[tuple[str, Any]]) -> onnx.ModelProto:
    options = {id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else {}
    try:
        return convert_sklearn(
            model, initial_types=types, target_opset=OPSETS, options=options
        )
    except NameError:  # its kind has no such option
        return convert_sklearn(model, initial_types=types, target_opset=OPSETS)


def skops_form(original: Original, unfilled: ModelFile, spec: ModelSpec) -> Form:
    """Return scikit-learn's model in the format of skops."""
    name = "its file of skops"
    trusted = spec.trusted_types
    foreign = original.foreign
    if foreign.is_pickle:
        try:
            native = ModelFile.native(original.raw, trusted, unfilled.classes)
        except TrainingError as exc:
            return Form(name, None, f"skops: {exc}")
        file = replace(native, interface=unfilled.interface)
    else:
        content = (foreign.folder / foreign.file).read_bytes()
        file = replace(
            unfilled, content=content, loader="mlflow.sklearn", trusted=trusted
        )
    return Form(name, file, SLOWER)


def zipped_pickle(foreign: ForeignModel, *, is_classifier: bool) -> bytes:
    """Return a pickle of scikit-learn in a folder that MLflow's pyfunc opens, as one file."""
    method = "predict_proba" if is_classifier else "predict"
    with TemporaryDirectory(prefix="gyre-pickle-") as folder:
        describe_anew(foreign, (), Path(folder), method)
        return zipped(Path(folder))


class Probes:
    """Rows and what the original says of them.

    Attributes:
        scores: Scores of the original, by kind of rows.

    """

    def __init__(self, original: Original, spec: ModelSpec, rows: pd.DataFrame) -> None:
        self._spec = spec
        kinds = {
            "real": rows,
            "drawn": drawn_rows(rows, spec, nulls_of(rows, spec), DRAWN_ROWS),
            "at the edges": edge_rows(rows, spec, original.interface),
        }
        self._rows: dict[str, pd.DataFrame] = {}
        self.scores: dict[str, NDArray[np.float64]] = {}
        for kind, each in kinds.items():
            if kind == "real":  # an error here is the model's own
                self._rows[kind], self.scores[kind] = each, original.scores(each)
            else:
                accepted, scores = accepted_rows(original.scores, each)
                self._rows[kind], self.scores[kind] = accepted, scores

    def prove(self, model: ModelFile) -> Proof:
        """Compare a served form with the original, on each kind of rows."""
        reasons = []
        largest = 0.0
        unit = 1.0
        if self._spec.task == "regression":
            unit = float(np.abs(self.scores["real"]).mean()) or 1.0
        session = open_session(model)
        for kind, rows in self._rows.items():
            if rows.empty:
                continue
            expected = self.scores[kind]
            columns = session_inputs(self._spec.inputs, rows)
            try:
                served_scores = session.run([], columns)[0]
            except Exception as exc:  # noqa: BLE001  (any error of an engine is a reason)
                reasons.append(f"{kind}: {in_one_line(exc)[:150]}")
                continue
            gaps = differences(expected, np.asarray(served_scores, np.float64), unit)
            beyond = int((gaps > LARGEST_DIFFERENCE).sum())
            if beyond:
                reasons.append(
                    f"{kind}: {beyond} of {len(gaps)} rows by up to {gaps.max():.3g}"
                )
            largest = max(largest, float(gaps.max()))
        return Proof(largest, tuple(reasons))


def differences(
    expected: NDArray[np.float64], served: NDArray[np.float64], unit: float
) -> NDArray[np.float64]:
    """Return the largest difference of each row, [N], as a share of the number or of `unit`.

    Two that are no number, or the same infinity, do not differ.
    """
    if served.shape != expected.shape:
        return np.full(len(expected), np.inf)
    with np.errstate(all="ignore"):
        gaps = np.abs(served - expected) / np.maximum(np.abs(expected), unit)
    is_same = (served == expected) | (np.isnan(served) & np.isnan(expected))
    gaps = np.where(is_same, 0, np.nan_to_num(gaps, nan=np.inf, posinf=np.inf))
    largest: NDArray[np.float64] = gaps.reshape(len(gaps), -1).max(axis=1)
    return largest


def require_scores_of_task(
    spec: ModelSpec, scores: NDArray[np.float64], *, may_be_classes: bool
) -> None:
    """Refuse scores that are not what the task says: of a classifier, no probabilities.

    Args:
        spec: The model.
        scores: Scores of some rows.
        may_be_classes: Whether each may be 0 or 1, as the probabilities of a full-grown tree are.

    Raises:
        TrainingError: They are classes, or numbers beyond 0 and 1, or do not sum to 1.

    """
    if spec.task == "regression" or not len(scores):
        return
    count = scores.size // len(scores)
    problem = ""
    if count != (len(spec.classes) or 1):
        problem = f"{count} numbers for a row"
    elif not np.isfinite(scores).all():
        problem = "numbers that are not finite"
    elif not ((scores >= 0) & (scores <= 1)).all():
        problem = f"numbers from {scores.min():.3g} to {scores.max():.3g}"
    elif np.isin(scores, (0, 1)).all() and not may_be_classes:
        problem = "classes"
    elif count > 1 and np.abs(scores.sum(axis=1) - 1).max() > SUM_DIFFERENCE:
        sums = scores.sum(axis=1)
        problem = f"sums from {sums.min():.3g} to {sums.max():.3g}"
    if problem:
        raise TrainingError(
            f"expected a model that predicts probabilities, found {problem}: log it with a predict "
            "that returns them (mlflow.sklearn: pyfunc_predict_fn='predict_proba')"
        )


def main(folder: Path) -> None:
    """Adopt the model that `request.json` of the folder names."""
    request = REQUESTS.validate_json((folder / "request.json").read_bytes())
    frame = pq.read_table(folder / "frame.parquet")
    try:
        result = convert(request, feature_columns(request.spec, frame), folder)
    except GyreError as exc:
        result = Result(error=str(exc))
    except Exception as exc:  # noqa: BLE001  (whatever a foreign model raises)
        result = Result(error=in_one_line(exc))
    (folder / "result.json").write_bytes(RESULTS.dump_json(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
