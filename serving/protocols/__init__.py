"""A protocol is one file here: bodies to rows, answers and errors to its form, its GET routes.

A fifth is a module with a `PROTOCOL`, listed in serving/routes.py.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.edge import ErrorForm, read_body
from serving.errors import InvalidRequestError, NoModelError
from serving.openapi import Operation
from serving.repository import Deployment, ModelRepository
from serving.schemas import Schemas
from serving.scorer import Answer, PredictionRow

BATCH_LIMIT = 10_000_000
"""Bytes of a body with many rows."""
INLINE_BYTES = 4_096
"""Bodies up to here are read on the event loop; a larger one would hold up the others."""

Write = Callable[[Sequence[Answer]], Response]
Parsed = tuple[Sequence[PredictionRow], Write]
"""The rows that a body asks for, and what makes a response of their answers."""


@dataclass(frozen=True)
class PredictRoute:
    """How a protocol scores: its paths, what reads a body, and what /docs say of each path.

    A path with `{name}` is of the model called so; one without is the default model's.
    """

    paths: tuple[str, ...]
    read: Callable[[Deployment, bytes, Request], Parsed]
    operation: Callable[[str, Schemas], Operation]
    limit: int = BATCH_LIMIT
    binary: str | None = None


@dataclass(frozen=True)
class Protocol:
    """owns: whether a path is this protocol's, so that its form says what is wrong with it.

    add_info: adds its GET routes, which tell of models or of the server.
    """

    form: ErrorForm
    owns: Callable[[str], bool]
    predict: tuple[PredictRoute, ...]
    add_info: Callable[[APIRouter, ModelRepository], None] = lambda _router, _repository: None


class PredictEndpoint:
    """The way of a scoring request: bytes, protocol, rows, answers, protocol, bytes. Plain ASGI.

    Its errors are the middleware's to answer.
    """

    def __init__(self, repository: ModelRepository, route: PredictRoute) -> None:
        self._repository = repository
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = datetime.now(UTC)
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        request = Request(scope, receive)
        route = self._route
        model = self._repository.find(request.path_params.get("name"))
        scope["model"] = model.spec.name
        model.scorer.admit()
        body = await read_body(request, route.limit, route.binary)
        if len(body) <= INLINE_BYTES:
            rows, write = route.read(model, body, request)
            response = write(await model.scorer.predict(rows, received))
        else:
            rows, write = await asyncio.to_thread(route.read, model, body, request)
            answers = await model.scorer.predict(rows, received)
            response = await asyncio.to_thread(write, answers)
        await response(scope, receive, send)


def operations(repository: ModelRepository, protocols: Sequence[Protocol]) -> Iterator[Operation]:
    """What /docs show of the scoring routes: each path of each model under each of its names."""
    for route in (route for protocol in protocols for route in protocol.predict):
        for model in repository:
            for path in route.paths:
                if "{name}" in path:
                    for name in model.names:
                        yield route.operation(path.replace("{name}", name), model.schemas)
                elif model is repository.default:
                    yield route.operation(path, model.schemas)


def version_of(model: Deployment) -> str:
    """Version that answers.

    Raises:
        NoModelError: none does yet.

    """
    if model.holder.current is None:
        raise NoModelError(model.holder.state)
    return model.holder.current.version


def rows_from(model: Deployment, records: Sequence[Any]) -> list[PredictionRow]:
    """Records with the key, the features or both by name, as rows to be scored.

    Raises:
        ValidationError, InvalidRequestError: they are none.

    """
    names = model.spec.entity_key
    rows = []
    for position, record in enumerate(model.schemas.flat.validate_python(records)):
        given = record.model_dump(exclude_unset=True)
        key = {name: given.pop(name) for name in names if name in given}
        if key and len(key) < len(names):
            missing = ", ".join(name for name in names if name not in key)
            raise InvalidRequestError(f"body.{position}: {missing} is missing")
        if not key and not given:
            raise InvalidRequestError(f"body.{position}: neither {', '.join(names)} nor features")
        rows.append(PredictionRow(key or None, given))
    return rows


def shown(
    model: Deployment, rows: Sequence[PredictionRow], answers: Sequence[Answer]
) -> list[Answer]:
    """Answers as clients read them, each behind the key it was asked with (null: none)."""
    found = []
    for row, answer in zip(rows, answers, strict=True):
        said = {
            **(row.key or dict.fromkeys(model.spec.entity_key)),
            "prediction": answer["prediction"],
            "probability": answer["probability"],
            "model_version": answer["version"],
            "request_id": answer["request_id"],
            "features_from": answer["features_from"],
            "in_population": answer["in_population"],
            "logged": answer["logged"],
        }
        if said["probability"] is None:  # a number is predicted
            del said["probability"]
        found.append(said)
    return found


def scored(
    model: Deployment, rows: Sequence[PredictionRow], answers: Sequence[Answer]
) -> list[Answer]:
    """`shown`, with `score` (the probability, or the number predicted) for the probability."""
    return [
        {"score": answer.pop("probability", answer["prediction"]), **answer}
        for answer in shown(model, rows, answers)
    ]
