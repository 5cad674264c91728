"""The documentation: FastAPI's OpenAPI document, with the routes that FastAPI does not run.

Scoring, feedback and events read their bodies themselves. They are described by their types.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from core.spec import FeatureType
from serving.http.edge import ERROR_RESPONSES, JSON, json_bytes
from serving.versions.loaded import LoadedVersions

EXAMPLES: dict[FeatureType, Any] = {
    "int32": 1,
    "int64": 1,
    "float32": 1.0,
    "double": 1.0,
    "bool": True,
    "timestamp": "2026-01-01T00:00:00Z",
    "string": "a",
}
PARAMETER = re.compile(r"{(\w+)}")
OBJECT = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Document:
    """What is sent, an example that is accepted as it stands, and what is answered."""

    body: TypeAdapter[Any]
    example: Any
    answer: TypeAdapter[Any] = OBJECT


@dataclass(frozen=True)
class Operation:
    """A POST route to describe.

    Attributes:
        path: Of the route, with at most one parameter.
        names: What the parameter may be.
        tag: Groups it with others.
        function: Its name and its docstring say what the route does.
        document: Bodies.
        status: Of an answer.

    """

    path: str
    names: Sequence[str]
    tag: str
    function: Callable[..., Any]
    document: Document
    status: int = 200


def write_document(
    app: FastAPI,
    models: Sequence[LoadedVersions],
    operations: Sequence[Operation],
    *,
    guarded: bool,
) -> bytes:
    """Write the document of an application.

    Args:
        app: It describes its own routes.
        models: Those that are served.
        operations: Further routes.
        guarded: Whether tokens are asked for.

    """
    document = get_openapi(
        title=", ".join(model.spec.name for model in models) or "Gyre",
        version=app.version,
        description="\n\n".join(map(_description, models)),
        routes=app.routes,
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    paths: dict[str, Any] = {}
    for operation in operations:
        paths[operation.path] = {"post": _describe(operation, schemas)}
    document["paths"] = paths | document["paths"]
    if guarded:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"bearer": []}]
    return json_bytes(document)


def _description(model: LoadedVersions) -> str:
    """Say what a model is."""
    spec = model.spec
    signature = model.signature
    key = _typed_names(signature.entity_key)
    features = _typed_names(signature.features)
    kind = " of ".join(filter(None, [signature.task, ", ".join(signature.classes)]))
    return (
        f"**{spec.name}** predicts `{spec.label}` of `{spec.dataset}` ({kind}).\n\n"
        f"- Key: {key}\n- Features: {features}"
    )


def _typed_names(fields: Mapping[str, str]) -> str:
    return ", ".join(f"`{name}` ({kind})" for name, kind in fields.items())


def _describe(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return an operation of the document; add the schemas that it refers to."""
    document = operation.document
    body = {
        "schema": _schema(document.body, schemas),
        "examples": {"example": {"value": document.example}},
    }
    answer = {"schema": _schema(document.answer, schemas)}
    success = {"description": "Done.", "content": {JSON: answer}}
    responses = {operation.status: success, **ERROR_RESPONSES}
    name_schema: dict[str, Any] = {"type": "string"}
    if operation.names:
        name_schema["enum"] = operation.names
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": name_schema}
        for name in PARAMETER.findall(operation.path)
    ]
    function = operation.function
    return {
        "tags": [operation.tag],
        "summary": function.__name__.replace("_", " ").capitalize(),
        "description": function.__doc__,
        "operationId": operation.path,
        "parameters": parameters,
        "requestBody": {"required": True, "content": {JSON: body}},
        "responses": responses,
    }


def _schema(kind: TypeAdapter[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    schema = kind.json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {})
    return schema


def example_features(model: LoadedVersions) -> dict[str, Any]:
    """Return features that the version that answers can score: what it takes for missing ones."""
    current = model.current
    defaults = current.contract.defaults if current else {}
    example = {}
    for name, kind in model.signature.features.items():
        example[name] = EXAMPLES[kind]
        if kind not in {"bool", "timestamp"}:  # which a version keeps as numbers
            example[name] = defaults.get(name, EXAMPLES[kind])
    return example
