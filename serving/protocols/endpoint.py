"""The endpoint of all protocols. A protocol is a module that reads rows, and writes answers.

Its list SCORING has its routes. `plain` is always served; another module is served where
core/additions.py lists it.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serving.errors import InvalidRequestError, NoModelError, NotFoundError
from serving.http.edge import read_body, run_by_size, send_json
from serving.http.openapi import Document
from serving.repository import Deployment, ModelRepository
from serving.scoring.rows import Answer, Row
from serving.scoring.scorer import Scorer
from serving.versions.model import LoadedModel

BATCH_LIMIT = 10_000_000
"""Bytes of a body with many rows."""

Rows = Sequence[Row]
Answers = Sequence[Answer]
Reading = tuple[Rows, Callable[[Answers], bytes]]
"""The rows that a body asks for, and a function that makes the body of the answer."""


@dataclass(frozen=True)
class ScoringRoute:
    """A way to score rows.

    Attributes:
        tag: The protocol's name in the documentation.
        paths: Paths of the route; one without `{name}` is of the default model.
        read: Reads a body. It raises ValidationError or InvalidRequestError.
        document: Returns the bodies of a model; its name and docstring are the documentation's.
        limit: Most bytes of a body.
        answer: Answers rows, which arrived at a moment (UTC).

    """

    tag: str
    paths: tuple[str, ...]
    read: Callable[[Deployment, bytes], Reading]
    document: Callable[[Deployment], Document]
    limit: int = BATCH_LIMIT
    answer: Callable[[Scorer, Rows, datetime], Awaitable[Answers]] = Scorer.predict


class ScoringEndpoint:
    """Answers a scoring route. The middleware answers its errors."""

    def __init__(self, repository: ModelRepository, route: ScoringRoute) -> None:
        self._repository = repository
        self.route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        route = self.route
        parameters = scope.get("path_params", {})
        model = self._repository.find(parameters.get("name"))
        scope["model"] = model.name
        version = parameters.get("version")
        if version is not None:
            check_version(model, version)
        with model.scorer.admitted():
            body = await read_body(scope, receive, route.limit)
            received = datetime.now(UTC)
            rows, write = await run_by_size(len(body), route.read, model, body)
            if version is not None:
                rows = [row._replace(is_pinned=True) for row in rows]
            answers = await route.answer(model.scorer, rows, received)
            content = await run_by_size(len(body), write, answers)
        await send_json(send, content)


def answering_version(model: Deployment) -> LoadedModel:
    """Return the version that answers; raise NoModelError if none does."""
    current = model.versions.current
    if current is None or model.versions.problem:
        raise NoModelError(model.versions.state)
    return current


def check_version(model: Deployment, version: str) -> None:
    """Raise NotFoundError unless the version is the one in production."""
    current = answering_version(model).version
    if version != current:
        raise NotFoundError(f"{model.name} answers by version {current}, not {version}")


def row_from(
    model: Deployment, fields: Mapping[str, Any], features: Mapping[str, Any]
) -> Row:
    """Return a row to score; fields: its key and its request data."""
    key = _part(fields, model.versions.signature.entity_key)
    data = _part(fields, model.versions.signature.request_data)
    return Row(key or None, features, data)


def _part(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def rows_from(model: Deployment, records: Any, place: str = "body") -> list[Row]:
    """Return the rows of records that have the key, the features or both side by side.

    Args:
        model: Model of the rows.
        records: Records that a client sent.
        place: Place of the records in the body, for errors.

    Raises:
        InvalidRequestError: A record is wrong; its position and field are named.

    """
    rows = []
    try:
        read_records = model.schemas.records.validate_python(records)
    except ValidationError as exc:
        lines = [
            f"{'.'.join([place, *map(str, error['loc'])])}: {error['msg']}"
            for error in exc.errors(include_url=False, include_context=False)
        ]
        raise InvalidRequestError("; ".join(lines)) from exc
    signature = model.versions.signature
    feature_names = (*signature.features, *signature.further)
    for position, record in enumerate(read_records):
        row = row_from(model, record, _part(record, feature_names))
        missing = [name for name in signature.entity_key if name not in record]
        if missing and (row.key or not row.given):
            raise InvalidRequestError(
                f"{place}.{position}: {', '.join(missing)} is missing"
            )
        rows.append(row)
    return rows


def answer_contents(
    model: Deployment, rows: Rows, answers: Answers
) -> list[dict[str, Any]]:
    """Return answers as clients read them, each behind its key (null: none was given)."""
    no_key = dict.fromkeys(model.versions.signature.entity_key)
    contents = []
    for row, answer in zip(rows, answers, strict=True):
        line = answer.line
        content = {
            **(row.key or no_key),
            "prediction": line["prediction"],
            "probability": line["probability"],
            "model_version": line["version"],
            "request_id": line["request_id"],
            "features_from": line["features_from"],
            "in_population": line["in_population"],
            "logged": answer.logged,
        }
        if content["probability"] is None:  # a number is predicted
            del content["probability"]
        classes = model.versions.classes(line["version"])
        if classes:
            probabilities = zip(classes, line["probabilities"], strict=True)
            content["prediction"] = classes[int(line["prediction"])]
            content["probabilities"] = dict(probabilities)
        contents.append(content)
    return contents


def score_contents(
    model: Deployment, rows: Rows, answers: Answers
) -> list[dict[str, Any]]:
    """Return answers with the model's own `score` in place of probabilities.

    The score is the probability of 1, a list of the probabilities of many classes, or the number
    that is predicted.
    """
    contents = []
    for content in answer_contents(model, rows, answers):
        probabilities = content.pop("probabilities", None)
        score = content.pop("probability", content["prediction"])
        if probabilities is not None:
            score = list(probabilities.values())
        contents.append({"score": score, **content})
    return contents
