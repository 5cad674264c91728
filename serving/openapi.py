"""The OpenAPI document of routes that read their bodies themselves, from the same pydantic models.

FastAPI documents its own routes. Its document is made of floats, in which the bounds of an int64
are no whole numbers; what is added here is not.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from serving.edge import JSON, PLAIN, ErrorForm

WHY = {
    401: "Tokens are set, and none of them was sent.",
    404: "No stored view knows the entity, or there is no such model or version.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The field that is wrong is named.",
    429: "Too many requests wait: try again after `Retry-After` seconds.",
    503: "No model; features are missing and the spec says refuse; the broker is away or full.",
}


@dataclass(frozen=True)
class Operation:
    """A POST route. binary: a content type that is read and answered besides JSON."""

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


def add_document(
    app: FastAPI, operations: Callable[[], Iterable[Operation]], *, guarded: bool
) -> None:
    """Show FastAPI's routes and `operations`, made anew at each request. guarded: by tokens."""

    def openapi() -> dict[str, Any]:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        paths, schemas = _written([*operations()])
        document["paths"] = paths | document["paths"]
        components = document["components"]
        components["schemas"] |= schemas
        if guarded:
            components["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"}
            }
            for methods in document["paths"].values():
                for operation in methods.values():
                    operation["security"] = [{"bearer": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _written(operations: list[Operation]) -> tuple[dict[str, Any], dict[str, Any]]:
    kinds = {
        kind
        for each in operations
        for kind in (each.body, each.answer, each.form.shown)
    }
    found, definitions = TypeAdapter.json_schemas(
        [(kind, "validation", TypeAdapter(kind)) for kind in kinds],
        ref_template="#/components/schemas/{model}",
    )
    schemas = {kind: {"schema": schema} for (kind, _), schema in found.items()}
    paths = {each.path: {"post": _operation(each, schemas)} for each in operations}
    return paths, definitions.get("$defs", {})


def _operation(
    operation: Operation, schemas: Mapping[Any, dict[str, Any]]
) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    more = {operation.binary: binary} if operation.binary else {}
    answer = {JSON: schemas[operation.answer]} | more
    error = {JSON: schemas[operation.form.shown]}
    responses = {
        str(operation.status): {"description": "The answer.", "content": answer}
    }
    for status, why in WHY.items():
        own = str(operation.form.status(status))
        responses[own] = {"description": why, "content": error}
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    return {
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "operationId": "post" + re.sub(r"\W", "_", operation.path),
        "parameters": [*in_path, *operation.parameters],
        "requestBody": {
            "required": True,
            "content": {JSON: schemas[operation.body]} | more,
        },
        "responses": responses,
    }
