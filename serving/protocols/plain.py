"""Gyre's own: `{"customer_id": 1, "features": {…}?}`, one or a list of them."""

from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serving.edge import PLAIN, json_response
from serving.errors import InvalidRequestError
from serving.protocols import Protocol, Scores, Served, Tells, Translate, Write, shown
from serving.schemas import rows_of
from serving.scorer import Answer, Request

ROW_LIMIT = 1_000_000
"""Bytes of a body."""
FLAGS = {"true": True, "1": True, "false": False, "0": False}
MERGE = {
    "name": "merge",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "Fill the features that are not given from the online store.",
}


def routes(models: Sequence[Served]) -> Iterator[Scores | Tells]:
    for model in models:
        schemas = model.schemas
        one, many = translate(model, batch=False), translate(model, batch=True)
        rows, answers = rows_of(schemas.request), list[schemas.answer]  # type: ignore[name-defined]
        for prefix in (*([""] if model.default else []), *(f"/models/{n}" for n in model.names)):
            path = f"{prefix}/predict"
            yield Scores(model, path, "Predict", one, schemas.request, schemas.answer,
                         limit=ROW_LIMIT, parameters=(MERGE,))  # fmt: skip
            yield Scores(model, f"{path}/batch", "Predict many", many, rows, answers,
                         parameters=(MERGE,))  # fmt: skip


def translate(model: Served, *, batch: bool) -> Translate:
    names = model.scorer.spec.entity_key.keys()
    adapters = model.schemas.many if batch else model.schemas.one

    def read(body: bytes, http: HttpRequest) -> tuple[Sequence[Request], Write]:
        merge = _wants_merge(http)
        found = adapters[merge].validate_json(body)
        asked = [
            Request({name: getattr(item, name) for name in names}, _given(item.features), merge)
            for item in (found if batch else [found])
        ]

        def write(answers: Sequence[Answer]) -> Response:
            rows = shown(model, asked, answers)
            return json_response(rows if batch else rows[0])

        return asked, write

    return read


def _given(features: Any) -> dict[str, Any]:
    return {} if features is None else features.model_dump(exclude_unset=True)


def _wants_merge(http: HttpRequest) -> bool:
    if not http.scope["query_string"]:
        return False
    value = http.query_params.get("merge", "false").lower()
    if value not in FLAGS:
        raise InvalidRequestError("query.merge: expected true or false")
    return FLAGS[value]


UNKNOWN = (("POST", "/models/{name}/predict"), ("POST", "/models/{name}/predict/batch"))
PROTOCOL = Protocol(PLAIN, routes, lambda _: True, UNKNOWN)
