"""Gyre's own: `{"customer_id": 1, "features": {…}?}`, one or a list; request data after the key."""

from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from serving.edge import PLAIN, json_response
from serving.errors import InvalidRequestError
from serving.openapi import Operation
from serving.protocols import (
    BATCH_LIMIT,
    Answers,
    Parsed,
    PredictRoute,
    Protocol,
    shown,
)
from serving.repository import Deployment
from serving.schemas import Schemas, rows_of
from serving.scorer import PredictionRow, Scorer

ROW_LIMIT = 1_000_000  # bytes of a body with one row
FLAGS = {"true": True, "1": True, "false": False, "0": False}
MERGE = {
    "name": "merge",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "Fill the features that are not given from the online store.",
}


def read(model: Deployment, body: bytes, request: Request, *, many: bool) -> Parsed:
    """many: the body is a list, and so is the answer."""
    merge = False
    if request.scope["query_string"]:
        asked = request.query_params.get("merge", "false").lower()
        if asked not in FLAGS:
            raise InvalidRequestError("query.merge: expected true or false")
        merge = FLAGS[asked]
    if many:
        items = model.schemas.many[merge].validate_json(body)
    else:
        items = [model.schemas.one[merge].model_validate_json(body)]
    names, fields = model.spec.entity_key, model.holder.request_data
    rows = []
    for item in items:
        given = (
            {}
            if item.features is None
            else item.features.model_dump(exclude_unset=True)
        )
        data = item.model_dump(include={*fields}, exclude_unset=True) if fields else {}
        rows.append(
            PredictionRow({n: getattr(item, n) for n in names}, given, merge, data)
        )

    def write(answers: Answers) -> Response:
        found = shown(model, rows, answers)
        return json_response(found if many else found[0])

    return rows, write


def operation(path: str, schemas: Schemas, *, many: bool) -> Operation:
    summary = "Predict many" if many else "Predict"
    text = "Score one entity by its stored features, or by the features given."
    body, answer = schemas.request, schemas.answer
    if many:
        text = "Score up to 10,000 entities; answers come in the order of the rows."
        body, answer = rows_of(body), list[answer]  # type: ignore[valid-type]
    return Operation(
        path, "Predictions", summary, text, body, answer, parameters=(MERGE,)
    )


def explain_operation(path: str, schemas: Schemas) -> Operation:
    text = "Answer as /predict does, and say what each feature contributes. Nothing is logged."
    body, answer = schemas.request, schemas.explained
    return Operation(
        path, "Predictions", "Explain", text, body, answer, parameters=(MERGE,)
    )


def route(path: str, limit: int, *, many: bool) -> PredictRoute:
    paths = (path, "/models/{name}" + path)
    return PredictRoute(
        paths, partial(read, many=many), partial(operation, many=many), limit
    )


ROUTES = (
    route("/predict", ROW_LIMIT, many=False),
    route("/predict/batch", BATCH_LIMIT, many=True),
)
EXPLAIN = route("/explain", ROW_LIMIT, many=False)
EXPLAIN = replace(EXPLAIN, operation=explain_operation, answer=Scorer.explain)
PROTOCOL = Protocol(PLAIN, lambda _: True, (*ROUTES, EXPLAIN))
