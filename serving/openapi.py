"""The OpenAPI document of routes that read their bodies themselves, from the same pydantic models.

FastAPI documents its own routes. Its document is made of floats, in which the bounds of an int64
are no whole numbers; what is added here is not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from serving.edge import JSON, PLAIN, ErrorForm

REF = "#/components/schemas/{model}"
WHY = {
    400: "The request did not arrive whole.",
    401: "Tokens are set, and none of them was sent.",
    404: "No such entity, model or version.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The field that is wrong is named.",
    429: "Too many requests wait: try again after `Retry-After` seconds.",
    503: "No model, no features and the spec says refuse, or no broker.",
}


@dataclass(frozen=True)
class Operation:
    """A POST route as the document shows it. body, answer: their types.

    binary: a content type that is read and answered besides JSON. status: of its answer.
    """

    path: str
    tag: str
    summary: str
    description: str
    body: Any
    answer: Any
    form: ErrorForm = PLAIN
    parameters: tuple[Mapping[str, Any], ...] = ()
    binary: str | None = None
    status: int = 200
    more: Mapping[int, str] = field(default_factory=dict)
    """Statuses beside those of every route, and why."""


def add_document(
    app: FastAPI, operations: Callable[[], Iterable[Operation]], *, guarded: bool
) -> None:
    """Have `/openapi.json` show FastAPI's routes and `operations`, made anew at each request.

    guarded: tokens are asked for.
    """

    def openapi() -> dict[str, Any]:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes,
                               description=app.description, tags=app.openapi_tags)  # fmt: skip
        paths, schemas = _written(list(operations()))
        document["paths"] = paths | document["paths"]
        components = document.setdefault("components", {})
        components["schemas"] = components.get("schemas", {}) | schemas
        if guarded:
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            for methods in document["paths"].values():
                for operation in methods.values():
                    operation["security"] = [{"bearer": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _written(operations: Sequence[Operation]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Paths, and the schemas that they refer to."""
    types: list[tuple[Any, Any, TypeAdapter[Any]]] = []
    for at, each in enumerate(operations):
        types.append(((at, "body"), "validation", TypeAdapter(each.body)))
        types.append(((at, "answer"), "serialization", TypeAdapter(each.answer)))
        types.append(((at, "error"), "serialization", TypeAdapter(each.form.shown)))
    found, definitions = TypeAdapter.json_schemas(types, ref_template=REF)
    shown = {key: schema for (key, _), schema in found.items()}
    paths = {
        each.path: {
            "post": _operation(each, shown[at, "body"], shown[at, "answer"], shown[at, "error"])
        }
        for at, each in enumerate(operations)
    }
    return paths, definitions.get("$defs", {})


def _operation(operation: Operation, body: Any, answer: Any, error: Any) -> dict[str, Any]:
    form = operation.form
    binary = {"schema": {"type": "string", "format": "binary"}}
    more = {operation.binary: binary} if operation.binary else {}
    responses = {
        str(operation.status): {
            "description": "The answer.",
            "content": {JSON: {"schema": answer}, **more},
        }
    }
    for status, why in {**WHY, **operation.more}.items():
        own = str(form.statuses.get(status, status))
        said = f"{responses[own]['description']} {why}" if own in responses else why
        responses[own] = {"description": said, "content": {JSON: {"schema": error}}}
    name = "".join(part if part.isalnum() else "_" for part in operation.path)
    return {
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "operationId": f"post{name}",
        "parameters": list(operation.parameters),
        "requestBody": {"required": True, "content": {JSON: {"schema": body}, **more}},
        "responses": responses,
    }
