"""The proof that a served model scores as the fitted one, and the format that this proof chooses."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from core.errors import TrainingError
from core.spec import ModelSpec
from core.user_code import in_one_line
from mlflow_server.model.pyfunc import ModelFile
from training.evaluation.metrics import predict
from training.model.onnx_export import EXPORT_REMEDY, exported
from training.model.probes import UNSEEN_VALUES, drawn_rows
from training.model.scoring import score

log = logging.getLogger(__name__)
PERMUTED_ROWS = 50_000
LARGEST_DIFFERENCE = 1e-5
"""Difference of two probabilities. That of two numbers is a share of the fitted model's number, or
of the mean size of its scores of the real rows if this is larger. A float32 is exact to 6e-8."""
LARGEST_SHARE_BEYOND = 1e-3
"""Share of rows that may differ by more: a value within float32's coarseness of a tree's threshold
may take the other branch."""
LARGEST_SHARE_OF_FLIPS = 1e-4


@dataclass(frozen=True)
class Proof:
    """How far the served and the fitted model agree.

    Attributes:
        largest_difference: Largest difference of all rows.
        reasons: Why the proof failed, a line for each kind of rows; empty if it passed.

    """

    largest_difference: float
    reasons: tuple[str, ...]


def pipeline_scores(model: Any, rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return the fitted model's scores, in the form of the served model's.

    They are float64: [N], the probability of class 1 or the number, and for K classes [N, K].
    """
    with threadpool_limits(1):  # OpenMP's threads wait for each other on a busy machine
        if not hasattr(model, "predict_proba"):
            return np.asarray(model.predict(rows), np.float64).reshape(len(rows))
        probabilities = np.asarray(model.predict_proba(rows), np.float64)
    is_binary = probabilities.shape[1] == 2  # noqa: PLR2004  (classes 0 and 1)
    return probabilities[:, 1] if is_binary else probabilities


def served_form(
    model: Any,
    spec: ModelSpec,
    rows: pd.DataFrame,
    all_rows: pd.DataFrame,
    threshold: float | None,
) -> tuple[ModelFile, Proof]:
    """Return the form in which a fitted model is served, and the proof that it scores the same.

    It has the format of `[serving]`. Without one it is ONNX if this scores the same, else the format
    of the model's library.

    Args:
        model: The fitted model.
        spec: Its spec.
        rows: Rows that it was fitted on: see `exported`.
        all_rows: Rows on which both are compared.
        threshold: Threshold of two classes.

    Raises:
        TrainingError: Nothing can convert it, and no data format takes it.

    """
    first_format = spec.serving.format or "onnx"
    problem = ""
    try:
        served = exported(model, spec, rows, first_format)
        proof = prove(model, served, all_rows, spec, threshold)
        if not proof.reasons or spec.serving.format:
            return served, proof
        problem = f"as ONNX it scores otherwise ({'; '.join(proof.reasons)})"
    except TrainingError as exc:
        if spec.serving.format:
            raise
        problem = str(exc).removesuffix(f"; {EXPORT_REMEDY}")
    try:
        native = exported(model, spec, rows, "native")
    except TrainingError as exc:
        raise TrainingError(f"{problem}; in the format of its library: {exc}") from exc
    log.warning(
        "%s: served in the format of its library, by a process of its own, slower than ONNX: %s",
        spec.name,
        problem,
    )
    return native, prove(model, native, all_rows, spec, threshold)


def prove(
    pipeline: Any,
    model: ModelFile,
    real: pd.DataFrame,
    spec: ModelSpec,
    threshold: float | None,
) -> Proof:
    """Score real and permuted rows with both models and compare; a difference is no error.

    One permuted value in a hundred is missing, or a text never seen.

    The proof passes if 99.9 % of the rows of either kind agree within 1e-5, and at most one in 10,000
    has another prediction (a flip).

    Args:
        pipeline: The fitted model.
        model: Its served form.
        real: Rows of the features.
        spec: Spec of the model.
        threshold: Threshold of two classes.

    """
    unseen = {
        name: UNSEEN_VALUES[kind]
        for name, kind in spec.inputs.items()
        if kind in UNSEEN_VALUES
    }
    probes = {"real": real, "permuted": drawn_rows(real, spec, unseen, PERMUTED_ROWS)}
    reasons = []
    largest = 0.0
    unit = 1.0
    try:
        for kind, rows in probes.items():
            expected = pipeline_scores(pipeline, rows)
            scores = score(model, spec.inputs, rows)
            is_number = threshold is None and expected.ndim == 1
            if is_number and kind == "real":
                unit = float(np.abs(expected).mean()) or 1.0
            gaps = np.abs(scores - expected) / np.maximum(np.abs(expected), unit)
            gaps = np.nan_to_num(gaps, nan=1.0).reshape(len(rows), -1).max(axis=1)
            share_beyond = float(np.mean(gaps > LARGEST_DIFFERENCE))
            words = (
                f"largest difference {gaps.max():.3g}, {share_beyond:.2%} of rows "
                f"beyond {LARGEST_DIFFERENCE:g}"
            )
            passed = share_beyond <= LARGEST_SHARE_BEYOND
            if not is_number:
                changed = predict(scores, threshold) != predict(expected, threshold)
                passed = passed and changed.mean() <= LARGEST_SHARE_OF_FLIPS
                words = f"{words}, {changed.sum()} flips"
            if not passed:
                reasons.append(f"{kind}: {words}")
            largest = max(largest, float(gaps.max()))
    except Exception as exc:  # noqa: BLE001  (any error of an engine is a reason not to trust it)
        reasons.append(in_one_line(exc))
        largest = 1.0
    return Proof(largest, tuple(reasons))
