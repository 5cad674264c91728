"""Which route is answered by what, and how `/docs` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from serving.edge import edge
from serving.errors import UnknownModelError
from serving.protocols import feedback, kserve_predict, kserve_ready, predict
from serving.schemas import Feedback, build_schemas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI
    from pydantic import BaseModel
    from starlette.requests import Request
    from starlette.responses import Response

    from serving.metrics import Metrics
    from serving.prediction_log import FeedbackLog
    from serving.protocols import Work
    from serving.scorer import Scorer

REFERENCE = "#/components/schemas/{model}"
MERGE = {
    "name": "merge",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "Fill the features that are not given from the online store.",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    404: {"description": "No such entity or model."},
    413: {"description": "The body is too large."},
    422: {"description": "`detail` names the field."},
    503: {"description": "No model, or no features and the spec says refuse."},
}


def add_routes(
    app: FastAPI, metrics: Metrics, scorers: Sequence[Scorer], default: Scorer, log: FeedbackLog
) -> None:
    """Add every protocol for every model, under its name and the names it is also served as."""
    bodies: list[type[BaseModel]] = [Feedback]

    def post(path: str, model: str, work: Work, listed: bool, extra: dict[str, Any]) -> None:  # noqa: FBT001
        endpoint = edge(metrics, model, path, work)
        app.add_api_route(path, endpoint, methods=["POST"], include_in_schema=listed, **extra)

    for scorer in scorers:
        spec, schemas = scorer.spec, build_schemas(scorer.spec)
        bodies += [schemas.request, schemas.instances]
        one, many = predict(scorer, schemas, batch=False), predict(scorer, schemas, batch=True)
        row = _shown(schemas.request, schemas.answer, [MERGE])
        rows = _shown(schemas.request, list[schemas.answer], [MERGE], listed=True)  # type: ignore[name-defined]
        if scorer is default:
            post("/predict", spec.name, one, True, row)  # noqa: FBT003
            post("/predict/batch", spec.name, many, True, rows)  # noqa: FBT003
        for name in (spec.name, *spec.served_as):
            listed, kserve = name == spec.name, f"/v1/models/{name}"
            post(f"/models/{name}/predict", spec.name, one, listed, row)
            post(f"/models/{name}/predict/batch", spec.name, many, listed, rows)
            work = kserve_predict(scorer, schemas)
            post(f"{kserve}:predict", spec.name, work, listed, _shown(schemas.instances, None))
            ready = edge(metrics, spec.name, kserve, kserve_ready(scorer))
            app.add_api_route(kserve, ready, methods=["GET"], include_in_schema=listed)
    post("/feedback", "", feedback(log), True, _shown(Feedback, None))  # noqa: FBT003
    _add_unknown_models(app, metrics, [scorer.spec.name for scorer in scorers])
    _show_bodies(app, bodies)


def _shown(
    body: type[BaseModel], answer: Any, parameters: Sequence[Any] = (), *, listed: bool = False
) -> dict[str, Any]:
    """What `/docs` says of a route that reads its body itself."""
    schema: dict[str, Any] = {"$ref": REFERENCE.format(model=body.__name__)}
    if listed:
        schema = {"type": "array", "items": schema}
    content = {"application/json": {"schema": schema}}
    return {
        "responses": {200: {"model": answer}, **REFUSALS} if answer else REFUSALS,
        "openapi_extra": {
            "parameters": list(parameters),
            "requestBody": {"required": True, "content": content},
        },
    }


def _add_unknown_models(app: FastAPI, metrics: Metrics, known: Sequence[str]) -> None:
    """Routes behind those of the known models: 404 that says what there is."""

    async def unknown(request: Request) -> Response:
        name = request.path_params["name"].removesuffix(":predict")
        raise UnknownModelError(f"no model {name!r}: there is {', '.join(known)}")

    for path in ("/models/{name}/predict", "/models/{name}/predict/batch", "/v1/models/{name}"):
        endpoint = edge(metrics, "", path, unknown)
        app.add_api_route(path, endpoint, methods=["GET", "POST"], include_in_schema=False)


def _show_bodies(app: FastAPI, bodies: Sequence[type[BaseModel]]) -> None:
    """Put the request models, which the endpoints read themselves, into the OpenAPI document."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, found = models_json_schema(
                [(body, "validation") for body in bodies], ref_template=REFERENCE
            )
            components = make().setdefault("components", {}).setdefault("schemas", {})
            components.update(found.get("$defs", {}))
        return make()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way of extending it
