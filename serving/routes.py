"""Every protocol for every model wired to the application: its routes, docs, refusals, tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.params import Body
from fastapi.routing import APIRoute
from fastapi.utils import create_model_field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.access import Access, Guard
from serving.edge import PLAIN, Endpoint, ErrorForm, edge, read_body, refusal
from serving.errors import NotFoundError
from serving.hot import INLINE_BYTES, Hot, HotRoute
from serving.protocols import (
    Protocol,
    Scores,
    Served,
    Tells,
    kserve_v1,
    mlflow_scoring,
    open_inference,
    plain,
)
from serving.schemas import build_schemas
from serving.scorer import Scorer
from stack.json_types import INT64_MAX
from stack.spec import ModelSpec

PROTOCOLS: tuple[Protocol, ...] = (
    plain.PROTOCOL,
    kserve_v1.PROTOCOL,
    open_inference.PROTOCOL,
    mlflow_scoring.PROTOCOL,
)
WHY = {
    400: "The request did not arrive whole.",
    401: "Tokens are set, and none of them was sent.",
    404: "No such entity, model or version.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The field that is wrong is named.",
    429: "Too many requests wait: try again after `Retry-After` seconds.",
    503: "No model, no features and the spec says refuse, or no broker.",
}
EXACT = {float(bound): bound for bound in (INT64_MAX, -INT64_MAX - 1)}


def refusals(
    form: ErrorForm = PLAIN, statuses: Sequence[int] = tuple(WHY)
) -> dict[int | str, dict[str, Any]]:
    """Say in /docs how a route of a protocol refuses."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        own, why = form.statuses.get(status, status), WHY[status]
        said = f"{found[own]['description']} {why}" if own in found else why
        found[own] = {"model": form.shown, "description": said}
    return found


REFUSALS = refusals()


def add_routes(
    app: FastAPI, scorers: Sequence[Scorer], default: ModelSpec | None, tokens: Path | None
) -> None:
    """Add every protocol for every model, under its name and the names it is also served as."""
    models, hot = [Served(s, build_schemas(s.spec), s.spec is default) for s in scorers], {}
    for protocol in PROTOCOLS:
        for route in protocol.routes(models):
            add = _scoring if isinstance(route, Scores) else _telling
            app.router.routes.append(add(route, protocol.form))  # type: ignore[arg-type]
            if isinstance(route, Scores) and "{" not in route.path:
                hot[route.path] = HotRoute(route, protocol.form)
    _add_unknown_models(app, models)
    app.add_exception_handler(HTTPException, _refused)
    document(app, guarded=tokens is not None)
    access = Access(tokens) if tokens is not None else None
    app.state.hot = Hot(hot, access)
    if access is not None:
        app.add_middleware(Guard, access=access, form_of=form_of)


def form_of(path: str) -> ErrorForm:
    """Form of the protocol whose path it is; of none: ours."""
    return next(each.form for each in reversed(PROTOCOLS) if each.owns(path))


async def _refused(http: HttpRequest, exc: Exception) -> Response:
    return refusal(exc, form_of(http.url.path))


def _scoring(route: Scores, form: ErrorForm) -> APIRoute:
    work = edge(route.model.names[0], route.path, _score(route), form)
    extra: dict[str, Any] = {"parameters": list(route.parameters)} if route.parameters else {}
    if route.binary:
        content = {route.binary: {"schema": {"type": "string", "format": "binary"}}}
        extra |= {"requestBody": {"content": content}, "responses": {"200": {"content": content}}}
    said = refusals(form)
    return posting(route.path, work, route.summary, route.body, route.answer, said, extra)


def _telling(route: Tells, form: ErrorForm) -> APIRoute:
    work = edge(route.model, route.path, route.work, form)
    made = APIRoute(
        route.path, work, response_model=route.answer, summary=route.summary,
        response_class=route.shown_as, responses=refusals(form, (401, *route.refuses)),
        openapi_extra={"parameters": list(route.parameters)} if route.parameters else None,
    )  # fmt: skip
    made.app = _Direct(work)
    return made


def posting(
    path: str, work: Endpoint, summary: str, body: Any, answer: Any,
    responses: dict[int | str, dict[str, Any]], extra: dict[str, Any] | None = None,
) -> APIRoute:  # fmt: skip
    """Make a POST route whose endpoint reads the body itself; `body` is for /docs alone."""
    route = APIRoute(
        path, work, methods=["POST"], response_model=answer, responses=responses,
        summary=summary, openapi_extra=extra,
    )  # fmt: skip
    route.body_field = create_model_field("body", body, field_info=Body(annotation=body))
    route.app = _Direct(work)
    return route


@dataclass(frozen=True, slots=True)
class _Direct:
    """An endpoint without FastAPI's reading of what it declares: it declares nothing."""

    work: Endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.work(HttpRequest(scope, receive))
        await response(scope, receive, send)


def _score(route: Scores) -> Endpoint:
    scorer = route.model.scorer

    async def work(http: HttpRequest) -> Response:
        received = datetime.now(UTC)
        body = await read_body(http, route.limit, route.binary)
        large = len(body) > INLINE_BYTES
        asked, write = await _near(large, route.translate, body, http)
        answers = await scorer.answer(asked, received)
        response: Response = await _near(large, write, answers)
        return response

    return work


async def _near(large: bool, work: Callable[..., Any], *given: Any) -> Any:  # noqa: FBT001
    """Do it here, or in a thread where it would hold up the others."""
    return await run_in_threadpool(work, *given) if large else work(*given)


def _add_unknown_models(app: FastAPI, models: Sequence[Served]) -> None:
    """Routes behind those of the known models: 404 that says what there is."""
    known = {name for model in models for name in model.names}
    there = ", ".join(model.names[0] for model in models)

    async def unnamed(_: HttpRequest) -> Response:
        paths = ", ".join(f"/models/{model.names[0]}/predict" for model in models)
        raise NotFoundError(f"no model is the default one (GYRE_DEFAULT_MODEL): there is {paths}")

    async def unknown(http: HttpRequest) -> Response:
        name, _, verb = http.path_params["name"].partition(":")
        if name in known and verb in {"", "predict"}:
            raise HTTPException(405, headers={"Allow": "POST" if verb else "GET"})
        raise NotFoundError(f"no model {http.path_params['name']!r}: there is {there}")

    for protocol in PROTOCOLS:
        for method, path in protocol.unknown:
            work = edge("", path, unknown, protocol.form)
            app.router.add_route(path, work, methods=[method])
            if path.startswith("/models/{name}"):  # of a default model these are its routes
                work = edge("", path, unnamed, protocol.form)
                app.router.add_route(path.removeprefix("/models/{name}"), work, methods=[method])


def document(app: FastAPI, *, guarded: bool) -> None:
    """Say what FastAPI cannot: no 422 where a protocol has another status, and tokens."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document: dict[str, Any] = _exact(made())
        for operation in (of for path in document["paths"].values() for of in path.values()):
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            if guarded:
                operation["security"] = [{"bearer": []}]
        if guarded:
            scheme: Mapping[str, str] = {"type": "http", "scheme": "bearer"}
            document["components"]["securitySchemes"] = {"bearer": scheme}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _exact(node: Any) -> Any:
    """Make the bounds of int64 integers again: FastAPI's are floats."""
    if isinstance(node, dict):
        return {name: _exact(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_exact(value) for value in node]
    return EXACT.get(node, node) if isinstance(node, float) else node
