"""A protocol is one file here: its paths, its bodies read to rows, answers and errors written.

A fifth is a module with a `PROTOCOL`, listed in serving/routes.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from serving.edge import Endpoint, ErrorForm
from serving.errors import InvalidRequestError, NoModelError
from serving.schemas import Schemas, answer_fields
from serving.scorer import Answer, Request, Scorer

BATCH_LIMIT = 10_000_000
"""Bytes of a body with many rows."""
IN_LOG = {"model_version": "version"}
"""A name of an answer that is another in the log."""

Write = Callable[[Sequence[Answer]], Response]
Translate = Callable[[bytes, HttpRequest], tuple[Sequence[Request], Write]]
"""A body to the rows it asks for, and to what makes a response of their answers."""


@dataclass(frozen=True)
class Served:
    """A model under its names; the default one is also served without a name."""

    scorer: Scorer
    schemas: Schemas
    default: bool

    @cached_property
    def nobody(self) -> dict[str, None]:
        return dict.fromkeys(self.scorer.spec.entity_key)

    @cached_property
    def fields(self) -> list[tuple[str, str]]:
        """Names of an answer's fields here and in the log."""
        return [(name, IN_LOG.get(name, name)) for name in answer_fields(self.scorer.spec)]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.scorer.spec.name, *self.scorer.spec.served_as)


@dataclass(frozen=True)
class Scores:
    """A POST route that scores. `body` and `answer` are their types in /docs."""

    model: Served
    path: str
    summary: str
    translate: Translate
    body: Any
    answer: Any
    limit: int = BATCH_LIMIT
    binary: str | None = None
    """Content type that is read and answered besides JSON."""
    parameters: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Tells:
    """A GET route that tells of a model or of the server."""

    path: str
    summary: str
    work: Endpoint
    answer: Any
    shown_as: type[Response] = JSONResponse
    model: str = ""
    refuses: tuple[int, ...] = ()
    parameters: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Protocol:
    form: ErrorForm
    routes: Callable[[Sequence[Served]], Iterator[Scores | Tells]]
    owns: Callable[[str], bool]
    """Whether a path is this protocol's, so that its form says what is wrong with it."""
    unknown: tuple[tuple[str, str], ...]
    """Methods and paths of models that are not there: `{name}`."""


def default_of(models: Sequence[Served]) -> Served:
    """Return the default model; without one, any that has a version."""
    by_version = sorted(models, key=lambda model: model.scorer.holder.current is None)
    return next((model for model in models if model.default), by_version[0])


def version_of(model: Served) -> str:
    """Version that answers.

    Raises:
        NoModelError: none does yet.

    """
    holder = model.scorer.holder
    if holder.current is None:
        raise NoModelError(holder.state)
    return holder.current.version


def requests_of(model: Served, rows: Sequence[Any]) -> list[Request]:
    """Rows as `Schemas.flat` read them, to be scored."""
    names = model.scorer.spec.entity_key.keys()
    requests = []
    for position, row in enumerate(rows):
        values = row.model_dump(exclude_unset=True)
        key = {name: values.pop(name) for name in names if name in values}
        if key and len(key) < len(names):
            missing = ", ".join(names - key.keys())
            raise InvalidRequestError(f"body.{position}: {missing} is missing")
        if not key and not values:
            raise InvalidRequestError(f"body.{position}: neither {', '.join(names)} nor features")
        requests.append(Request(key or None, values))
    return requests


def shown(model: Served, asked: Sequence[Request], answers: Sequence[Answer]) -> list[Answer]:
    """Answers as clients read them, each behind the key it was asked with (null: none)."""
    nobody, fields = model.nobody, model.fields
    return [
        {**(request.key or nobody), **{name: row[of] for name, of in fields}}
        for request, row in zip(asked, answers, strict=True)
    ]


def scored(model: Served, asked: Sequence[Request], answers: Sequence[Answer]) -> list[Answer]:
    """`shown`, with `score` (the probability, or the number predicted) for the probability."""
    rows = shown(model, asked, answers)
    return [{"score": row.pop("probability", row["prediction"]), **row} for row in rows]
