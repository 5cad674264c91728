"""Every protocol wired to the application: its routes, its documentation, its refusals."""

from collections.abc import Callable, Iterable
from pathlib import Path

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serving.access import Access
from serving.edge import ErrorForm, refusal
from serving.middleware import RequestMiddleware
from serving.openapi import Operation, add_document
from serving.protocols import (
    PredictEndpoint,
    kserve_v1,
    mlflow_scoring,
    open_inference,
    operations,
    plain,
)
from serving.repository import ModelRepository
from stack.errors import GyreError

PROTOCOLS = (plain.PROTOCOL, kserve_v1.PROTOCOL, open_inference.PROTOCOL, mlflow_scoring.PROTOCOL)


def add_routes(
    app: FastAPI,
    repository: ModelRepository,
    tokens: Path | None,
    more: Callable[[], Iterable[Operation]] = tuple,
) -> RequestMiddleware:
    """Add every protocol's routes; return `app` behind the middleware, which sees every request.

    tokens: a file of them, without one nobody is asked for any. more: further operations for /docs.
    """
    scoring = {
        path: PredictEndpoint(repository, route)
        for protocol in PROTOCOLS
        for route in protocol.predict
        for path in route.paths
    }
    app.router.routes[:0] = [Route(path, endpoint) for path, endpoint in scoring.items()]
    for protocol in PROTOCOLS:
        protocol.add_info(app.router, repository)
    for refused in (HTTPException, GyreError, ValidationError, ClientDisconnect, Exception):
        app.add_exception_handler(refused, _refused)
    add_document(
        app, lambda: [*operations(repository, PROTOCOLS), *more()], guarded=tokens is not None
    )
    access = Access(tokens) if tokens is not None else None
    at_once = {path: endpoint for path, endpoint in scoring.items() if "{" not in path}
    return RequestMiddleware(app, at_once, access, form_of)


def form_of(path: str) -> ErrorForm:
    """Form of the protocol whose path it is; of none: ours."""
    return next(each.form for each in reversed(PROTOCOLS) if each.owns(path))


async def _refused(request: Request, exc: Exception) -> Response:
    return refusal(exc, form_of(request.url.path))
