"""A worker's application: every route behind the middleware, and what runs beside them.

A module of routes that core/additions.py lists may have both of these:
    SCORING: a list of ScoringRoute, routes that score rows;
    routes(settings, repository): a function that returns a list of its other routes.
"""

import logging
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from types import ModuleType

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from core.access.http_guard import HttpGuard
from core.additions import absent, present
from core.errors import GyreError
from core.settings import Settings
from serving.http.draining import Draining
from serving.http.edge import refusal
from serving.http.middleware import Access, RequestMiddleware
from serving.lifespan import keep_up
from serving.prediction_log.append_log import AppendLog
from serving.prediction_log.inbox import Inbox
from serving.protocols import predict
from serving.protocols.endpoint import ScoringEndpoint, ScoringRoute
from serving.repository import ModelRepository
from serving.routes import status
from serving.routes.documentation import OpenApiDocument
from serving.routes.feedback import FeedbackRoute
from serving.routes.predictions import PredictionsRoute
from serving.watcher import RegistryWatcher

ERRORS = (HTTPException, GyreError, ValidationError, ClientDisconnect, Exception)
logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> RequestMiddleware:
    """Make everything that a worker has. Nothing is opened before the application starts."""
    folder = settings.home / "serving" / "log"
    inbox = Inbox(settings.data_url, folder) if settings.data_url else None
    outbox = None
    if settings.predictions_topic:
        from serving.prediction_log.outbox import Outbox  # noqa: PLC0415  (only of teams)

        outbox = Outbox(settings)
    log = AppendLog(folder, "predictions", outbox.folder if outbox else None)
    feedback_log = AppendLog(folder, "feedback")
    repository = ModelRepository(settings, log)
    watcher = RegistryWatcher(settings, repository)
    draining = Draining(settings.serving_drain_seconds)
    routes = [
        FeedbackRoute(feedback_log),
        PredictionsRoute(repository, log),
        *status.routes(repository, log, watcher, settings.link("console")),
    ]
    scoring = list(predict.SCORING)
    for module in added_modules():
        scoring += getattr(module, "SCORING", ())
        if hasattr(module, "routes"):
            routes += module.routes(settings, repository)
    app = FastAPIOffline(
        title="Gyre",
        version="1",
        redoc_url=None,
        lifespan=partial(
            keep_up,
            draining=draining,
            logs=(log, feedback_log),
            inbox=inbox,
            outbox=outbox,
            repository=repository,
            watcher=watcher,
        ),
        redirect_slashes=False,
    )
    return add_routes(app, settings, repository, scoring, routes, draining=draining)


def added_modules() -> list[ModuleType]:
    """Import the modules of routes of the additions that are there.

    A module is left out where it needs an addition that is not there.
    """
    absent_packages = {addition.package for addition in absent()}
    modules = []
    for addition in present():
        for name in addition.routes:
            try:
                modules.append(import_module(name))
            except ModuleNotFoundError as exc:
                if exc.name not in absent_packages:
                    raise
                logger.info("%s is left out: there is no package %s", name, exc.name)
    return modules


def add_routes(
    app: FastAPI,
    settings: Settings,
    repository: ModelRepository,
    scoring: Sequence[ScoringRoute],
    routes: Sequence[BaseRoute],
    *,
    draining: Draining,
) -> RequestMiddleware:
    """Add routes and the documentation to an application; put the middleware in front."""
    tokens_file = settings.serving_tokens_file
    endpoints = {
        path: ScoringEndpoint(repository, route)
        for route in scoring
        for path in route.paths
    }
    document = OpenApiDocument(
        app, repository, endpoints, guarded=tokens_file is not None
    )
    app.router.routes[:0] = [
        Route("/openapi.json", document.respond),
        *(Route(path, endpoint) for path, endpoint in endpoints.items()),
    ]
    app.router.routes += routes
    for error in ERRORS:
        app.add_exception_handler(error, _refuse)
    unnamed = {path: route for path, route in endpoints.items() if "{" not in path}
    return RequestMiddleware(
        app,
        unnamed,
        Access(tokens_file) if tokens_file else None,
        guard=HttpGuard(settings),
        draining=draining,
        behind_proxy=settings.behind_proxy,
    )


async def _refuse(request: Request, exc: Exception) -> Response:
    return refusal(exc, request.url.path)
