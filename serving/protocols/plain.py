"""Gyre's own: `{"customer_id": 1, "features": {…}?}`, one or a list of them."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.edge import PLAIN, json_response
from serving.errors import InvalidRequestError
from serving.protocols import PredictRoute, Protocol, Write, shown
from serving.repository import Deployment
from serving.schemas import rows_of
from serving.scorer import Answer, PredictionRow

ROW_LIMIT = 1_000_000
"""Bytes of a body."""
FLAGS = {"true": True, "1": True, "false": False, "0": False}
MERGE = {
    "name": "merge",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "Fill the features that are not given from the online store.",
}


def read_one(
    model: Deployment, body: bytes, request: Request
) -> tuple[Sequence[PredictionRow], Write]:
    merge = _wants_merge(request)
    row = _row(model, model.schemas.one[merge].validate_json(body), merge=merge)

    def write(answers: Sequence[Answer]) -> Response:
        return json_response(shown(model, [row], answers)[0])

    return [row], write


def read_batch(
    model: Deployment, body: bytes, request: Request
) -> tuple[Sequence[PredictionRow], Write]:
    merge = _wants_merge(request)
    items = model.schemas.many[merge].validate_json(body)
    rows = [_row(model, item, merge=merge) for item in items]

    def write(answers: Sequence[Answer]) -> Response:
        return json_response(shown(model, rows, answers))

    return rows, write


def _row(model: Deployment, item: Any, *, merge: bool) -> PredictionRow:
    key = {name: getattr(item, name) for name in model.spec.entity_key}
    given = {} if item.features is None else item.features.model_dump(exclude_unset=True)
    return PredictionRow(key, given, merge)


def _wants_merge(request: Request) -> bool:
    if not request.scope["query_string"]:
        return False
    value = request.query_params.get("merge", "false").lower()
    if value not in FLAGS:
        raise InvalidRequestError("query.merge: expected true or false")
    return FLAGS[value]


PROTOCOL = Protocol(
    "Predictions",
    PLAIN,
    lambda _: True,
    (
        PredictRoute(
            ("/predict", "/models/{name}/predict"),
            "Predict",
            "Score one entity by its stored features, or by the features given.",
            read_one,
            lambda schemas: schemas.request,
            lambda schemas: schemas.answer,
            limit=ROW_LIMIT,
            parameters=(MERGE,),
        ),
        PredictRoute(
            ("/predict/batch", "/models/{name}/predict/batch"),
            "Predict many",
            "Score up to 10,000 entities; answers come in the order of the rows.",
            read_batch,
            lambda schemas: rows_of(schemas.request),
            lambda schemas: list[schemas.answer],  # type: ignore[name-defined]
            parameters=(MERGE,),
        ),
    ),
)
