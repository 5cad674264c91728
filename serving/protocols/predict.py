"""Gyre's own protocol: `{"customer_id": 1, "features": {…}}`, one or a list; features are optional."""

from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from serving.http.edge import json_bytes
from serving.http.openapi import EXAMPLES, Document, example_features
from serving.protocols.endpoint import (
    Reading,
    Rows,
    ScoringRoute,
    answer_contents,
    row_from,
)
from serving.repository import Deployment

TAG = "Predictions"
ROW_LIMIT = 1_000_000
"""Bytes of a body with one row."""


class Prediction(TypedDict):
    """Fields of an answer, behind the key, for the documentation.

    A number has no probability. Of many classes there is the probability of each.
    """

    prediction: float | str
    probability: NotRequired[float]
    model_version: str
    request_id: str
    features_from: Literal["request", "online", "partly", "cache", "defaults"]
    in_population: bool
    logged: bool
    probabilities: NotRequired[dict[str, float]]


ANSWER = TypeAdapter(Prediction)
ANSWERS = TypeAdapter(list[Prediction])


def read_row(model: Deployment, body: bytes) -> Reading:
    rows = _rows(model, [model.schemas.row.validate_json(body)])
    return rows, lambda answers: json_bytes(answer_contents(model, rows, answers)[0])


def read_rows(model: Deployment, body: bytes) -> Reading:
    rows = _rows(model, model.schemas.rows.validate_json(body))
    return rows, lambda answers: json_bytes(answer_contents(model, rows, answers))


def _rows(model: Deployment, items: list[dict[str, Any]]) -> Rows:
    return [row_from(model, item, item.get("features", {})) for item in items]


def predict(model: Deployment) -> Document:
    """Score one entity by its stored features, or by the features given."""
    return Document(model.schemas.row, example(model), ANSWER)


def predict_batch(model: Deployment) -> Document:
    """Score up to 10,000 entities; answers come in the order of the rows."""
    return Document(model.schemas.rows, [example(model)], ANSWERS)


def example(model: Deployment) -> dict[str, Any]:
    key = {
        name: EXAMPLES[kind]
        for name, kind in model.versions.signature.entity_key.items()
    }
    return {**key, "features": example_features(model.versions)}


SCORING = [
    ScoringRoute(
        tag=TAG,
        paths=("/predict", "/models/{name}/predict"),
        read=read_row,
        document=predict,
        limit=ROW_LIMIT,
    ),
    ScoringRoute(
        tag=TAG,
        paths=("/predict/batch", "/models/{name}/predict/batch"),
        read=read_rows,
        document=predict_batch,
    ),
]
