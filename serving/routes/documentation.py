"""`GET /openapi.json`: FastAPI's OpenAPI document, with the routes that FastAPI does not run.

Scoring, feedback and events read their bodies themselves. They are described by their types.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from serving.http.edge import ERROR_RESPONSES, JSON, json_bytes
from serving.http.openapi import DescribedRoute, Operation
from serving.protocols.endpoint import ScoringEndpoint
from serving.repository import ModelRepository
from serving.versions.loaded import LoadedVersions

PARAMETER = re.compile(r"{(\w+)}")


class OpenApiDocument:
    """The document, which is written anew when models or operations have changed."""

    def __init__(
        self,
        app: FastAPI,
        repository: ModelRepository,
        endpoints: Mapping[str, ScoringEndpoint],
        *,
        guarded: bool,
    ) -> None:
        """Prepare to write the document.

        Args:
            app: The application.
            repository: Models that are served.
            endpoints: Endpoints that score rows, by path.
            guarded: Whether a client needs a token.

        """
        self._app = app
        self._repository = repository
        self._endpoints = endpoints
        self._guarded = guarded
        self._content = b""
        self._written_of: object = None

    async def respond(self, _request: Request) -> Response:
        """Answer with the document."""
        operations = []
        for route in self._app.routes:
            if isinstance(route, DescribedRoute):
                operation = await route.describe()
                if operation:
                    operations.append(operation)
        models = [model.versions for model in self._repository]
        parts = [(model.spec, model.current, model.signature) for model in models]
        written_of = (parts, operations)
        if written_of != self._written_of:
            operations = [*self._scoring_operations(), *operations]
            self._content = await asyncio.to_thread(self._write, models, operations)
            self._written_of = written_of
        return Response(self._content, media_type=JSON)

    def _scoring_operations(self) -> list[Operation]:
        """Describe the scoring routes by the default model; without one, by any model."""
        model = self._repository.first()
        if model is None:
            return []
        names = sorted(self._repository.models, key=lambda name: name != model.name)
        operations = []
        for path, endpoint in self._endpoints.items():
            if "{version}" not in path:
                document = endpoint.route.document
                operations.append(
                    Operation(
                        path, names, endpoint.route.tag, document, document(model)
                    )
                )
        return operations

    def _write(
        self, models: Sequence[LoadedVersions], operations: Sequence[Operation]
    ) -> bytes:
        document = get_openapi(
            title=", ".join(model.spec.name for model in models) or "Gyre",
            version=self._app.version,
            description="\n\n".join(map(_description, models)),
            routes=self._app.routes,
        )
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        paths = {}
        for operation in operations:
            paths[operation.path] = {"post": _describe(operation, schemas)}
        document["paths"] = paths | document["paths"]
        if self._guarded:
            components["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"}
            }
            document["security"] = [{"bearer": []}]
        return json_bytes(document)


def _description(model: LoadedVersions) -> str:
    """Describe a model."""
    spec = model.spec
    signature = model.signature
    key = _typed_names(signature.entity_key)
    features = _typed_names(signature.features)
    kind = " of ".join(filter(None, [signature.task, ", ".join(signature.classes)]))
    names = [name for name in (spec.label_name, *spec.datasets) if name]
    label = " of ".join(f"`{name}`" for name in names) or "a score"
    return (
        f"**{spec.name}** predicts {label} ({kind}).\n\n"
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
