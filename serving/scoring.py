"""From features to results: one matrix, a score for each row, and its line of the log."""

from collections.abc import Sequence

from core.spec import entity_text
from mlflow_server.served_model import ServedModel
from serving.copies import Role
from serving.errors import InvalidRequestError, ModelFailedError
from serving.model import LoadedModel, Score, outcome, rounded_score, score, wrong
from serving.rows import Features, Line, ReceivedRow, Result


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
        rows: What is asked.
        completed: Features of each row, or why it has none.

    Returns:
        A result of each row.

    """
    scorable = [
        (row, features)
        for row, features in zip(rows, completed, strict=True)
        if isinstance(features, Features)
    ]
    scored = iter(_score_together(role, model, scorable))
    return [
        next(scored) if isinstance(features, Features) else Result(None, features)
        for features in completed
    ]


def _score_together(
    role: Role, model: LoadedModel, rows: Sequence[tuple[ReceivedRow, Features]]
) -> list[Result]:
    """Score rows at once; where that fails one by one, so that a row fails alone."""
    if not rows:
        return []
    try:
        matrix = [features.values for _, features in rows]
        scores = score(model.session, model.contract, matrix)
    except Exception as exc:  # noqa: BLE001  (onnxruntime's own, among others)
        if len(rows) == 1:
            row, features = rows[0]
            return [_failure(role, model, row, features, exc)]
        results = []
        for pair in rows:
            results += _score_together(role, model, [pair])
        return results
    return [
        _result(role, model, row, features, row_score)
        for (row, features), row_score in zip(rows, scores, strict=True)
    ]


def _result(
    role: Role,
    model: LoadedModel,
    row: ReceivedRow,
    features: Features,
    exact_score: Score,
) -> Result:
    contract = model.contract
    row_score = rounded_score(contract, exact_score)
    problem = wrong(contract, row_score)
    if problem:
        text = f"version {model.version} gives the score {row_score}, {problem}"
        if features.origin == "request":
            return Result(line=None, error=InvalidRequestError(f"features: {text}"))
        error = ModelFailedError(f"features: {text}")
        return _failure(role, model, row, features, error)
    line = _line(role, model, row, features)
    return Result(line | outcome(contract, row_score))


def _failure(
    role: Role,
    model: LoadedModel,
    row: ReceivedRow,
    features: Features,
    error: Exception,
) -> Result:
    line = _line(role, model, row, features)
    line["probability"] = None
    line["prediction"] = None
    line["error"] = " ".join(str(error).split()) or type(error).__name__
    return Result(line, error)


def _line(role: Role, model: LoadedModel, row: ReceivedRow, features: Features) -> Line:
    """Return what is said of a row, scored or not."""
    key = row.row.key
    received = row.received.isoformat()
    return {
        "request_id": row.request_id,
        "model": model.contract.model,
        "version": model.version,
        "role": role,
        "received": received,
        "as_of": received,
        "entity": None if key is None else entity_text(key),
        "request_data": row.row.request_data,
        "features": features.values,
        "features_from": features.origin,
        "in_population": _is_in_population(model.contract, features),
    }


def _is_in_population(contract: ServedModel, features: Features) -> bool:
    """Whether the label is defined for a row."""
    population = contract.population
    if population is None:
        return True
    member = features.values[population.feature]
    return not isinstance(member, str) and 0 <= member < population.below
