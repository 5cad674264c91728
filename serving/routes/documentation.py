"""`GET /openapi.json`: the OpenAPI document of everything that a worker serves now."""

import asyncio
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from serving.http.edge import JSON
from serving.http.openapi import Operation, write_document
from serving.repository import ModelRepository
from serving.routes.route_set import RouteSet


class OpenApiDocument:
    """The document, which is written anew when models or operations have changed."""

    def __init__(
        self,
        app: FastAPI,
        repository: ModelRepository,
        route_sets: Sequence[RouteSet],
        *,
        guarded: bool,
    ) -> None:
        """Prepare to write the document.

        Args:
            app: The application, which describes its own routes.
            repository: Models that are served.
            route_sets: Routes that the application does not describe.
            guarded: Whether a client needs a token.

        """
        self._app = app
        self._repository = repository
        self._scoring = [
            route for route_set in route_sets for route in route_set.scoring
        ]
        self._descriptions = [
            route_set.describe for route_set in route_sets if route_set.describe
        ]
        self._guarded = guarded
        self._content = b""
        self._written_of: object = None

    async def respond(self, _request: Request) -> Response:
        """Answer with the document."""
        operations = [await describe() for describe in self._descriptions]
        models = [model.versions for model in self._repository]
        parts = [(model.spec, model.current, model.signature) for model in models]
        written_of = (parts, operations)
        if written_of != self._written_of:
            self._content = await asyncio.to_thread(
                write_document,
                self._app,
                models,
                [*self._scoring_operations(), *operations],
                guarded=self._guarded,
            )
            self._written_of = written_of
        return Response(self._content, media_type=JSON)

    def _scoring_operations(self) -> list[Operation]:
        """Describe the scoring routes by the default model; without one, by any model."""
        if not self._repository.models:
            return []
        model = self._repository.first()
        names = sorted(self._repository.models, key=lambda name: name != model.name)
        return [
            Operation(path, names, route.tag, route.document, route.document(model))
            for route in self._scoring
            for path in route.paths
            if "{version}" not in path
        ]
