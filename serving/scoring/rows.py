"""A row on its way to its answer: as its request has it, its features, its result, its answer."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from core.spec import Entity

MICRO_BATCH = 64
"""Requests answered together, and rows scored on the event loop at once."""
Values = Mapping[str, Any]
Line = dict[str, Any]
"""A line of the prediction log, as serving/prediction_log/append_log.py says."""


class Row(NamedTuple):
    """A row that a request asks to score.

    Attributes:
        key: The entity; None: the request gives the features alone.
        given: Features by name, which replace the look-up.
        request_data: Fields of the request, beside the key, that on-demand features take.
        is_pinned: Whether the request names the version in production: no challenger answers it.

    """

    key: Entity | None
    given: Values
    request_data: Values
    is_pinned: bool = False


class ReceivedRow(NamedTuple):
    """A row of a request that arrived at `received` (aware UTC)."""

    row: Row
    request_id: str
    received: datetime


class Request(NamedTuple):
    """Rows that are answered together, or fail together; received: when (aware UTC)."""

    rows: Sequence[ReceivedRow]
    received: datetime


class Features(NamedTuple):
    """Features that a model takes, each by its name, and where they are from."""

    values: Values
    origin: str


class Result(NamedTuple):
    """The result of a row.

    Attributes:
        line: Its line of the log; None: the row was refused, which is no failure of the model.
        error: Why it has no prediction; None: it has one.

    """

    line: Line | None
    error: Exception | None = None


class Answer(NamedTuple):
    """A prediction.

    Attributes:
        line: Its line of the log.
        logged: Whether that line is on file.

    """

    line: Line
    logged: bool


AnswersOrError = list[Answer] | Exception
"""Answers of a request in the order of its rows, or why it has none."""
