"""MLflow's application, as uvicorn serves it, behind Gyre's rules and with hooks on aliases and stages.

It serves the routes of mlflow_server/server/routes.py, and files of its own store
(mlflow_server/server/locations.py).

Its database is made or checked before `/health` answers. A change of a role, by MLflow's UI or any
client, has its ledger row before the answer. A stage acts before MLflow sets it
(mlflow_server/server/stages.py).
"""

import json
import logging
import os
from http import HTTPStatus
from typing import Any

from flask import Response, request
from google.protobuf.json_format import Parse, ParseError
from mlflow.entities.model_registry.model_version_stages import get_canonical_stage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_CONFLICT,
)
from mlflow.protos.model_registry_pb2 import TransitionModelVersionStage
from mlflow.server import app as flask_app
from mlflow.server.handlers import (
    catch_mlflow_exception,
    get_handler,
    initialize_backend_stores,
)
from mlflow.tracing.constant import TRACE_RENDERER_ASSET_PATH

from core.access.http_guard import GuardMiddleware
from core.errors import GyreError
from core.settings import load_settings
from mlflow_server.server.browser import preset_choices
from mlflow_server.server.locations import GIVEN_BY, GIVEN_BY_TAG, Locations
from mlflow_server.server.role_changes import CHANGING, record_change
from mlflow_server.server.routes import SERVED, route_name
from mlflow_server.server.stages import change_stage
from mlflow_server.server.users import USER_HEADER, UserMiddleware, author_of

STORES = ("FILE_STORE", "REGISTRY_STORE", "ARTIFACT_ROOT")
# `mlflow server` imports this module too, only to find the app.
if "_MLFLOW_SERVER_FILE_STORE" in os.environ:
    initialize_backend_stores(
        *(os.environ[f"_MLFLOW_SERVER_{name}"] for name in STORES)
    )

from mlflow.server.fastapi_app import app as mlflow_app  # noqa: E402  (after its database)

TRACE_RENDERER = f"{TRACE_RENDERER_ASSET_PATH}/index.html"
"""MLflow's page that notebooks show in a frame."""
SETTINGS = load_settings()
SET_STAGE_IN_MLFLOW = get_handler(TransitionModelVersionStage)
LOCATIONS = Locations(
    os.environ.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION", ""),
    os.environ.get("_MLFLOW_SERVER_ARTIFACT_ROOT", ""),
)
LOCATIONS.guard()
logger = logging.getLogger(__name__)
flask_app.after_request(preset_choices)


def served_routes(routes: list[Any]) -> list[Any]:
    """Return FastAPI's routes without those that Gyre refuses; Flask's are below them."""
    return [
        route
        for route in routes
        if not hasattr(route, "methods")
        or all(route_name(method, route.path) in SERVED for method in route.methods)
    ]


mlflow_app.router.routes = served_routes(mlflow_app.router.routes)
app = GuardMiddleware(
    UserMiddleware(mlflow_app, behind_proxy=SETTINGS.behind_proxy), SETTINGS
)


@flask_app.before_request  # type: ignore[untyped-decorator]  # MLflow does not type it
@catch_mlflow_exception  # type: ignore[untyped-decorator]
def refuse_route_or_location() -> Response | None:
    """Refuse a route that is not served, and a location outside the store."""
    if request.url_rule is None:  # Flask answers 404
        return None
    method = "GET" if request.method == "HEAD" else request.method
    route = route_name(method, request.url_rule.rule)
    if method != "OPTIONS" and route not in SERVED:
        text = f"Gyre's MLflow does not serve {method} {request.path}"
        raise MlflowException(f"{text}: see docs/security.md", PERMISSION_DENIED)
    if route in GIVEN_BY or route in GIVEN_BY_TAG:
        LOCATIONS.check_given(route, sent_document())
    return None


def sent_document() -> Any:
    """Return the JSON document of the request as MLflow reads it: older clients encode it twice."""
    body = request.get_json(force=True, silent=True)
    return json.loads(body) if isinstance(body, str) else body


@flask_app.after_request  # type: ignore[untyped-decorator]
def set_headers(response: Response) -> Response:
    """Let no other site show a page in a frame, but the traces that a notebook shows."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    # The exact page: a path that only begins so may lead out of its folder, to MLflow's UI.
    if request.path != TRACE_RENDERER:
        response.headers["X-Frame-Options"] = "SAMEORIGIN"
    return response


@flask_app.after_request  # type: ignore[untyped-decorator]
def record_role(response: Response) -> Response:
    """Write a change of a role past Gyre into the ledger, with the proxy's user."""
    if request.url_rule is None or response.status_code != HTTPStatus.OK:
        return response
    route = route_name(request.method, request.url_rule.rule)
    if route in CHANGING:
        try:
            record_change(SETTINGS, route, sent_document(), author_of_request())
        except (
            Exception
        ):  # MLflow has the change; the next reconcile records it as out of band
            logger.exception("no ledger row yet about %s", sent_document())
    return response


@catch_mlflow_exception  # type: ignore[untyped-decorator]
def set_stage() -> Response:
    """Set a stage as MLflow does, once Gyre has promoted the version or refused the stage."""
    body = TransitionModelVersionStage()
    try:
        Parse(request.get_data(), body, ignore_unknown_fields=True)
        version = str(int(body.version))
    except (ParseError, ValueError) as exc:
        raise MlflowException(str(exc), INVALID_PARAMETER_VALUE) from exc
    stage = get_canonical_stage(body.stage)
    model = SETTINGS.own_name(body.name)
    try:
        if model is None:
            answer: Response = SET_STAGE_IN_MLFLOW()
        else:
            change = (model, version, stage, author_of_request())
            answer = change_stage(SETTINGS, *change, SET_STAGE_IN_MLFLOW)
    except GyreError as exc:
        # MLflow's client repeats a request for minutes after a 5xx, and then hides its text.
        raise MlflowException(str(exc), RESOURCE_CONFLICT) from exc
    return answer


def author_of_request() -> str:
    """Return `mlflow-ui:USER` if the configured proxy names the user, else `mlflow-ui`."""
    return author_of(request.headers.get(USER_HEADER))


# Both addresses of the call, `/api` and the UI's `/ajax-api`, lead to this view.
flask_app.view_functions[SET_STAGE_IN_MLFLOW.__name__] = set_stage
