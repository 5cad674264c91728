"""The protocols: each translates its bodies to rows for the scorer and answers back."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi.params import Body
from fastapi.routing import APIRoute
from fastapi.utils import create_model_field
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serving.edge import Endpoint, edge, json_response, read_body
from serving.errors import FeedbackConflictError, InvalidRequestError, NoModelError, NotFoundError
from serving.prediction_log import FeedbackLog
from serving.schemas import (
    Feedback,
    Schemas,
    answer_fields,
    build_schemas,
    feedback_schema,
    rows_of,
)
from serving.scorer import Request, Scorer
from stack.spec import ModelSpec

ROW_LIMIT, BATCH_LIMIT = 1_000_000, 10_000_000
"""Bytes of a body."""
INLINE_BYTES = 4_096
"""Bodies up to here are answered on the event loop; a larger one would hold up the others."""
IN_LOG = {"model_version": "version"}
"""A name of an answer that is another in the log."""
FLAGS = {"true": True, "1": True, "false": False, "0": False}
MERGE = {
    "name": "merge",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "Fill the features that are not given from the online store.",
}
SUMMARIES = {"predict": "Predict", "batch": "Predict many", "feedback": "Tell what came true"}
REFUSALS: dict[int | str, dict[str, Any]] = {
    404: {"description": "No such entity or model."},
    413: {"description": "The body is too large."},
    422: {"description": "`detail` names the field."},
    503: {"description": "No model, or no features and the spec says refuse."},
}


def add_routes(router: APIRouter, scorers: Sequence[Scorer], default: Scorer) -> None:
    """Add every protocol for every model, under its name and the names it is also served as."""
    for scorer in scorers:
        spec, schemas = scorer.spec, build_schemas(scorer.spec)
        one, many = predict(scorer, schemas, batch=False), predict(scorer, schemas, batch=True)
        rows, answers = list[schemas.request], list[schemas.answer]  # type: ignore[name-defined]
        names = (spec.name, *spec.served_as)
        for prefix in (*([""] if scorer is default else []), *(f"/models/{n}" for n in names)):
            _post(router, f"{prefix}/predict", spec.name, one, schemas.request, schemas.answer)
            _post(router, f"{prefix}/predict/batch", spec.name, many, rows, answers)
        for path in (f"/v1/models/{name}" for name in names):
            kserve = kserve_predict(scorer, schemas)
            _post(router, f"{path}:predict", spec.name, kserve, schemas.instances)
            router.add_api_route(path, edge(spec.name, path, kserve_ready(scorer)))
    _add_unknown_models(router, [scorer.spec.name for scorer in scorers])


def add_feedback(router: APIRouter, log: FeedbackLog, specs: Sequence[ModelSpec]) -> None:
    outcome = feedback_schema(specs)
    _post(router, "/feedback", "", feedback(log, outcome), outcome)


def _post(
    router: APIRouter, path: str, model: str, work: Endpoint, body: Any, answer: Any = None
) -> None:
    route = APIRoute(
        path,
        edge(model, path, work),
        methods=["POST"],
        response_model=answer,
        responses=REFUSALS,
        summary=SUMMARIES[path.replace(":", "/").rpartition("/")[2]],
        openapi_extra={"parameters": [MERGE]} if answer else None,
    )
    # For /docs alone: set this late, FastAPI leaves reading the body to the endpoint.
    route.body_field = create_model_field("body", body, field_info=Body(annotation=body))
    router.routes.append(route)


def _add_unknown_models(router: APIRouter, known: Sequence[str]) -> None:
    """Routes behind those of the known models: 404 that says what there is."""

    async def unknown(http: HttpRequest) -> Response:
        name = http.path_params["name"].removesuffix(":predict")
        raise NotFoundError(f"no model {name!r}: there is {', '.join(known)}")

    for path in ("/models/{name}/predict", "/models/{name}/predict/batch", "/v1/models/{name}"):
        router.add_route(path, edge("", path, unknown), methods=["GET", "POST"])


def predict(scorer: Scorer, schemas: Schemas, *, batch: bool) -> Endpoint:
    """`{"customer_id": 1, "features": {…}?}`, or a list of them."""
    names = scorer.spec.entity_key.keys()

    def read(body: bytes, merge: bool) -> list[Request]:  # noqa: FBT001
        if batch:
            items = schemas.many[merge].validate_json(body)
        else:
            items = [schemas.one[merge].validate_json(body)]
        return [
            Request({name: getattr(item, name) for name in names}, _given(item.features), merge)
            for item in items
        ]

    def write(answers: list[dict[str, Any]]) -> Any:
        return answers if batch else answers[0]

    return _scoring(scorer, BATCH_LIMIT if batch else ROW_LIMIT, read, write)


def kserve_predict(scorer: Scorer, schemas: Schemas) -> Endpoint:
    """KServe V1: instances are `{"customer_id": 1}` or every feature by name.

    score: the probability, or the number predicted.
    """
    names = scorer.spec.entity_key.keys()

    def read(body: bytes, _merge: bool) -> list[Request]:  # noqa: FBT001
        parsed: Any = schemas.instances.model_validate_json(body)
        requests = []
        for position, instance in enumerate(parsed.instances):
            values = _given(instance)
            key = {name: values.pop(name) for name in names if name in values}
            if key and len(key) < len(names):
                missing = ", ".join(names - key.keys())
                raise InvalidRequestError(f"body.instances.{position}: {missing} is missing")
            requests.append(Request(key or None, values))
        return requests

    def write(answers: list[dict[str, Any]]) -> Any:
        scores = [row.pop("probability", row["prediction"]) for row in answers]
        rows = zip(scores, answers, strict=True)
        return {"predictions": [{"score": score, **row} for score, row in rows]}

    return _scoring(scorer, BATCH_LIMIT, read, write)


def _given(model: Any) -> dict[str, Any]:
    return {} if model is None else model.model_dump(exclude_unset=True)


def _scoring(
    scorer: Scorer,
    limit: int,
    read: Callable[[bytes, bool], Sequence[Request]],
    write: Callable[[list[dict[str, Any]]], Any],
) -> Endpoint:
    """Answer with what `write` makes of the answers to the rows that `read` finds in a body."""
    nobody = dict.fromkeys(scorer.spec.entity_key)
    fields = {name: IN_LOG.get(name, name) for name in answer_fields(scorer.spec)}

    async def work(http: HttpRequest) -> Response:
        received, merge = datetime.now(UTC), _wants_merge(http)
        body = await read_body(http, limit)

        small = len(body) <= INLINE_BYTES
        asked = read(body, merge) if small else await run_in_threadpool(read, body, merge)
        found = await scorer.answer(asked, received)

        def respond() -> Response:
            answers = [
                {**(request.key or nobody), **{name: row[of] for name, of in fields.items()}}
                for request, row in zip(asked, found, strict=True)
            ]
            return json_response(write(answers))

        return respond() if small else await run_in_threadpool(respond)

    return work


def _wants_merge(http: HttpRequest) -> bool:
    if not http.scope["query_string"]:
        return False
    value = http.query_params.get("merge", "false").lower()
    if value not in FLAGS:
        raise InvalidRequestError("query.merge: expected true or false")
    return FLAGS[value]


def kserve_ready(scorer: Scorer) -> Endpoint:
    """KServe V1 model readiness: 503 until a version answers."""

    async def work(http: HttpRequest) -> Response:
        if scorer.holder.current is None:
            raise NoModelError(scorer.holder.state)
        return json_response({"name": http.url.path.rpartition("/")[2], "ready": True})

    return work


def feedback(log: FeedbackLog, outcome: type[Feedback]) -> Endpoint:
    """`{"request_id", "actual"}` or a list. All of it is recorded, or nothing (409)."""
    single, many = TypeAdapter(outcome), TypeAdapter[list[Feedback]](rows_of(outcome))

    async def work(http: HttpRequest) -> Response:
        received = datetime.now(UTC)
        body = await read_body(http, BATCH_LIMIT)
        listed = body.lstrip()[:1] == b"["
        items = many.validate_json(body) if listed else [single.validate_json(body)]
        outcomes: dict[str, float] = {}
        for item in items:
            if outcomes.setdefault(item.request_id, item.actual) != item.actual:
                raise FeedbackConflictError(f"request_id {item.request_id}: two actuals sent")
        logged = log.record(outcomes, received)
        return json_response({"recorded": len(outcomes), "logged": logged})

    return work
