"""Every protocol wired to the application: its routes, its documentation, its refusals."""

from collections.abc import Callable, Iterable
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.access import Access
from serving.edge import ErrorForm, refusal
from serving.middleware import RequestMiddleware
from serving.openapi import Operation, add_document
from serving.protocols import (
    PredictEndpoint,
    Protocol,
    kserve_v1,
    mlflow_scoring,
    open_inference,
    operations,
    plain,
)
from serving.repository import ModelRepository

PROTOCOLS: tuple[Protocol, ...] = (
    plain.PROTOCOL,
    kserve_v1.PROTOCOL,
    open_inference.PROTOCOL,
    mlflow_scoring.PROTOCOL,
)


def add_routes(
    app: FastAPI,
    repository: ModelRepository,
    tokens: Path | None,
    more: Callable[[], Iterable[Operation]] = tuple,
) -> None:
    """Add every protocol's routes and the middleware, which sees every request of `app`.

    tokens: a file of them, without one nobody is asked for any. more: further operations for /docs.
    """
    scoring = [
        Route(path, PredictEndpoint(repository, route))
        for protocol in PROTOCOLS
        for route in protocol.predict
        for path in route.paths
    ]
    for protocol in PROTOCOLS:
        protocol.add_info(app.router, repository)
    app.add_exception_handler(HTTPException, _refused)
    access = Access(tokens) if tokens is not None else None
    app.add_middleware(RequestMiddleware, routes=scoring, access=access, form_of=form_of)
    add_document(
        app,
        lambda: [*operations(repository, PROTOCOLS), *more()],
        guarded=tokens is not None,
    )


def form_of(path: str) -> ErrorForm:
    """Form of the protocol whose path it is; of none: ours."""
    return next(each.form for each in reversed(PROTOCOLS) if each.owns(path))


async def _refused(request: Request, exc: Exception) -> Response:
    return refusal(exc, form_of(request.url.path))
