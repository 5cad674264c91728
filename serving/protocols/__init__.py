"""A protocol is one file here: bodies to rows, answers and errors to its form, its GET routes.

A fifth is a module with a `PROTOCOL`, listed in serving/app.py.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
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
from serving.scorer import Answer, PredictionRow, Scorer

BATCH_LIMIT = 10_000_000
"""Bytes of a body with many rows."""
INLINE_BYTES = 4_096
"""Bodies up to here are read on the event loop; a larger one would hold up the others."""

Rows = Sequence[PredictionRow]
Answers = Sequence[Answer]
Parsed = tuple[Rows, Callable[[Answers], Response]]
"""The rows that a body asks for, and what makes a response of their answers."""


@dataclass(frozen=True)
class PredictRoute:
    """How a protocol scores. A path without `{name}` is the default model's."""

    paths: tuple[str, ...]
    read: Callable[[Deployment, bytes, Request], Parsed]
    operation: Callable[[str, Schemas], Operation]
    limit: int = BATCH_LIMIT
    answer: Callable[[Scorer, Rows, datetime], Awaitable[list[Answer]]] = Scorer.predict
    binary: str | None = None


@dataclass(frozen=True)
class Protocol:
    """owns: whether errors of a path have its form. add_info: adds its GET routes."""

    form: ErrorForm
    owns: Callable[[str], bool]
    predict: tuple[PredictRoute, ...]
    add_info: Callable[[APIRouter, ModelRepository], None] = (
        lambda _router, _repository: None
    )


class PredictEndpoint:
    """The way of a scoring request. Plain ASGI; its errors are the middleware's to answer."""

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
            response = write(await route.answer(model.scorer, rows, received))
        else:
            rows, write = await asyncio.to_thread(route.read, model, body, request)
            answers = await route.answer(model.scorer, rows, received)
            response = await asyncio.to_thread(write, answers)
        await response(scope, receive, send)


def version_of(model: Deployment) -> str:
    """Version that answers (NoModelError: none does yet)."""
    if model.holder.current is None or model.holder.problem:
        raise NoModelError(model.holder.state)
    return model.holder.current.version


def rows_from(model: Deployment, records: Sequence[Any]) -> list[PredictionRow]:
    """Records with the key, the features or both by name (ValidationError, InvalidRequestError)."""
    names, fields = model.spec.entity_key, model.holder.request_data
    rows = []
    for position, record in enumerate(model.schemas.flat.validate_python(records)):
        given = record.model_dump(exclude_unset=True)
        key = {name: given.pop(name) for name in names if name in given}
        data = (
            {name: given.pop(name) for name in fields if name in given}
            if fields
            else {}
        )
        if len(key) < len(names) and (key or not given):
            missing = ", ".join(name for name in names if name not in key)
            what = f"{missing} is missing" if key else f"neither {missing} nor features"
            raise InvalidRequestError(f"body.{position}: {what}")
        rows.append(PredictionRow(key or None, given, request_data=data))
    return rows


def shown(model: Deployment, rows: Rows, answers: Answers) -> list[Answer]:
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
        if classes := model.spec.classes:
            said["prediction"] = classes[int(answer["prediction"])]
            said["probabilities"] = dict(
                zip(classes, answer["probabilities"], strict=True)
            )
        if why := answer.get("why"):  # it is explained, and no prediction
            del said["request_id"], said["logged"]
            said |= why
        found.append(said)
    return found


def scored(model: Deployment, rows: Rows, answers: Answers) -> list[Answer]:
    """`shown`, with the model's own `score` for probabilities: that of 1, those of many classes in
    order, or the number predicted.
    """
    found = []
    for row in shown(model, rows, answers):
        score, every = (
            row.pop("probability", row["prediction"]),
            row.pop("probabilities", {}),
        )
        found.append({"score": [*every.values()] or score, **row})
    return found
