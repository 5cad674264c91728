"""Gyre's own: `{"customer_id": 1, "features": {…}?}`, one or a list of them."""

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from serving.edge import PLAIN, json_response
from serving.errors import InvalidRequestError
from serving.openapi import Operation
from serving.protocols import Parsed, PredictRoute, Protocol, shown
from serving.repository import Deployment
from serving.schemas import Schemas, rows_of
from serving.scorer import Answer, PredictionRow

TAG = "Predictions"
ROW_LIMIT = 1_000_000
"""Bytes of a body."""
FLAGS = {"true": True, "1": True, "false": False, "0": False}
MERGE = {
    "name": "merge",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "Fill the features that are not given from the online store.",
}


def read(model: Deployment, body: bytes, request: Request, *, many: bool) -> Parsed:
    """many: the body is a list, and so is the answer."""
    merge = _wants_merge(request)
    if many:
        items = model.schemas.many[merge].validate_json(body)
    else:
        items = [model.schemas.one[merge].model_validate_json(body)]
    names = model.spec.entity_key
    rows = []
    for item in items:
        given = {} if item.features is None else item.features.model_dump(exclude_unset=True)
        rows.append(PredictionRow({name: getattr(item, name) for name in names}, given, merge))

    def write(answers: Sequence[Answer]) -> Response:
        found = shown(model, rows, answers)
        return json_response(found if many else found[0])

    return rows, write


def _wants_merge(request: Request) -> bool:
    if not request.scope["query_string"]:
        return False
    value = request.query_params.get("merge", "false").lower()
    if value not in FLAGS:
        raise InvalidRequestError("query.merge: expected true or false")
    return FLAGS[value]


def one(path: str, schemas: Schemas) -> Operation:
    summary = "Predict"
    text = "Score one entity by its stored features, or by the features given."
    return Operation(path, TAG, summary, text, schemas.request, schemas.answer, parameters=(MERGE,))


def batch(path: str, schemas: Schemas) -> Operation:
    return Operation(
        path,
        TAG,
        "Predict many",
        "Score up to 10,000 entities; answers come in the order of the rows.",
        rows_of(schemas.request),
        list[schemas.answer],  # type: ignore[name-defined]
        parameters=(MERGE,),
    )


PROTOCOL = Protocol(
    PLAIN,
    lambda _: True,
    (
        PredictRoute(
            ("/predict", "/models/{name}/predict"), partial(read, many=False), one, ROW_LIMIT
        ),
        PredictRoute(
            ("/predict/batch", "/models/{name}/predict/batch"), partial(read, many=True), batch
        ),
    ),
)
