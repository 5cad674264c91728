"""From features to results: one matrix, a score for each row, and its line of the log."""

from collections.abc import Sequence
from typing import Any

from core.spec import entity_text
from mlflow_server.manifest import ModelManifest, rounded_one
from serving.errors import InvalidRequestError, ModelFailedError
from serving.scoring.rows import Features, Line, ReceivedRow, Result
from serving.versions.model import LoadedModel, Score, score, score_problem
from serving.versions.roles import Role


def score_rows(
    role: Role,
    model: LoadedModel,
    rows: Sequence[ReceivedRow],
    completed: Sequence[Features | Exception],
) -> list[Result]:
    """Score rows.

    Args:
        role: The role that the version answers in.
        model: The version.
        rows: Rows of one or several requests.
        completed: Features of each row, or why it has none.

    Returns:
        A result of each row.

    """
    lines = [
        _line(role, model, row, features)
        for row, features in zip(rows, completed, strict=True)
        if isinstance(features, Features)
    ]
    results = iter(_score_together(model, lines))
    return [
        next(results) if isinstance(features, Features) else Result(None, features)
        for features in completed
    ]


def _score_together(model: LoadedModel, lines: Sequence[Line]) -> list[Result]:
    """Score rows at once; where that fails one by one, so that a row fails alone."""
    if not lines:
        return []
    try:
        matrix = [line["features"] for line in lines]
        scores = score(model.session, model.contract, matrix)
    except Exception as exc:  # noqa: BLE001  (onnxruntime's own, among others)
        if len(lines) == 1:
            return [_failure(lines[0], exc)]
        results = []
        for line in lines:
            results += _score_together(model, [line])
        return results
    return [
        _result(model, line, row_score)
        for line, row_score in zip(lines, scores, strict=True)
    ]


def _result(model: LoadedModel, line: Line, exact_score: Score) -> Result:
    contract = model.contract
    row_score = rounded_score(contract, exact_score)
    problem = score_problem(contract, row_score)
    if problem:
        text = (
            f"features: version {model.version} gives the score {row_score}, {problem}"
        )
        if line["features_from"] == "request":
            return Result(line=None, error=InvalidRequestError(text))
        return _failure(line, ModelFailedError(text))
    return Result(line | outcome_fields(contract, row_score))


def rounded_score(contract: ModelManifest, exact_score: Score) -> Score:
    """Return a score as it is answered."""
    if isinstance(exact_score, list):
        return [rounded_one(probability, 0.5) for probability in exact_score]
    return rounded_one(exact_score, contract.threshold)


def outcome_fields(contract: ModelManifest, rounded: Score) -> dict[str, Any]:
    """Return the prediction of a rounded score as the log has it; of many classes the likeliest."""
    if isinstance(rounded, list):
        largest = max(rounded)
        return {
            "probability": largest,
            "prediction": float(rounded.index(largest)),
            "probabilities": rounded,
        }
    if contract.threshold is None:
        return {"probability": None, "prediction": rounded}
    is_positive = rounded >= contract.threshold
    return {"probability": rounded, "prediction": 1.0 if is_positive else 0.0}


def _failure(line: Line, error: Exception) -> Result:
    text = " ".join(str(error).split()) or type(error).__name__
    failed = {"probability": None, "prediction": None, "error": text}
    return Result(line | failed, error)


def _line(role: Role, model: LoadedModel, row: ReceivedRow, features: Features) -> Line:
    """Return the fields of a log line that do not depend on the score."""
    key = row.row.key
    received = row.received.isoformat()
    return {
        "request_id": row.request_id,
        "model": model.contract.model,
        "version": model.version,
        "created": model.origin.created,
        "role": role,
        "received": received,
        "as_of": received,
        "entity": None if key is None else entity_text(key),
        "request_data": row.row.request_data,
        "features": features.values,
        "features_from": features.origin,
        "in_population": is_in_population(model.contract, features),
    }


def is_in_population(contract: ModelManifest, features: Features) -> bool:
    """Whether the label is defined for a row."""
    population = contract.population
    if population is None:
        return True
    member = features.values[population.feature]
    return isinstance(member, int | float) and 0 <= member < population.below
