"""KServe V1: `instances` are `{"customer_id": 1}` or every feature by name.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, create_model
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serving.edge import Endpoint, ErrorForm, in_words, json_response
from serving.protocols import (
    Protocol,
    Scores,
    Served,
    Tells,
    Translate,
    Write,
    requests_of,
    scored,
    version_of,
)
from serving.schemas import FORBID
from serving.scorer import Answer, Request


class KServeError(BaseModel):
    error: str


class Models(BaseModel):
    models: list[str]


class Ready(BaseModel):
    name: str
    ready: bool


ERRORS = ErrorForm(KServeError, lambda _, detail: {"error": in_words(detail)}, {422: 400})


def routes(models: Sequence[Served]) -> Iterator[Scores | Tells]:
    known = {"models": [name for model in models for name in model.names]}

    async def listed(_: HttpRequest) -> Response:
        return json_response(known)

    yield Tells("/v1/models", "Models", listed, Models)
    for model in models:
        schemas, read = model.schemas, translate(model)
        body = _named(model, "Instances", instances=schemas.instances)
        answer = _named(model, "Predictions", predictions=list[schemas.scored])  # type: ignore[name-defined]
        for name in model.names:
            path = f"/v1/models/{name}"
            yield Scores(model, f"{path}:predict", "KServe V1: predict", read, body, answer)
            yield Tells(path, "KServe V1: ready", ready(model, name), Ready,
                        model=model.names[0], refuses=(503,))  # fmt: skip


def _named(model: Served, name: str, **fields: Any) -> Any:
    title = model.schemas.request.__name__.removesuffix("Request")
    every: Any = {field: (kind, ...) for field, kind in fields.items()}
    return create_model(title + name, __config__=FORBID, **every)


def translate(model: Served) -> Translate:
    body = _named(model, "Instances", instances=model.schemas.flat)

    def read(sent: bytes, _: HttpRequest) -> tuple[Sequence[Request], Write]:
        asked = requests_of(model, body.model_validate_json(sent).instances)

        def write(answers: Sequence[Answer]) -> Response:
            return json_response({"predictions": scored(model, asked, answers)})

        return asked, write

    return read


def ready(model: Served, name: str) -> Endpoint:
    """503 until a version answers."""

    async def work(_: HttpRequest) -> Response:
        version_of(model)
        return json_response({"name": name, "ready": True})

    return work


PROTOCOL = Protocol(
    ERRORS,
    routes,
    lambda path: path.startswith("/v1/"),
    (("GET", "/v1/models/{name}"), ("POST", "/v1/models/{name}")),
)
