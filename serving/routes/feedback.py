"""`POST /feedback`: outcomes of predictions become lines of the log.

Any outcome of any prediction is taken; monitoring/log/tables.py judges outcomes that do not fit.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

from annotated_types import Len
from pydantic import TypeAdapter, with_config
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from serving.http.edge import json_response, read_body, run_by_size
from serving.http.openapi import DescribedRoute, Document, Operation
from serving.prediction_log.append_log import AppendLog
from serving.protocols.endpoint import BATCH_LIMIT
from serving.scoring.schemas import (
    FORBID,
    MAX_ROWS,
    Number,
    PredictionId,
    Text,
    rows_reader,
)

PATH = "/feedback"


@with_config(FORBID)
class Outcome(TypedDict):
    """The outcome of a prediction: 0 or 1, a number, or a class by its name or position."""

    request_id: PredictionId
    actual: Number | Text


OUTCOME = TypeAdapter(Outcome)
OUTCOMES = rows_reader(Outcome)


class FeedbackRoute(DescribedRoute):
    """The route that writes outcomes into a log."""

    def __init__(self, log: AppendLog) -> None:
        super().__init__(PATH, self.record, methods=["POST"])
        self._log = log

    async def record(self, request: Request) -> Response:
        """Answer a request."""
        body = await read_body(request.scope, request.receive, BATCH_LIMIT)
        content = await run_by_size(len(body), record_outcomes, self._log, body)
        return json_response(content)

    async def describe(self) -> Operation:
        """Describe a body with one outcome, or with a list of them."""
        return OPERATION


def record_outcomes(log: AppendLog, body: bytes) -> dict[str, Any]:
    """Take the outcome of one prediction, or a list of them, by request id."""
    received = datetime.now(UTC).isoformat()
    is_list = body.lstrip()[:1] == b"["
    outcomes = (
        OUTCOMES.validate_json(body) if is_list else [OUTCOME.validate_json(body)]
    )
    rows = [{**outcome, "received": received} for outcome in outcomes]
    return {"recorded": len(rows), "logged": log.write(rows)}


DOCUMENT = Document(
    body=TypeAdapter(Outcome | Annotated[list[Outcome], Len(1, MAX_ROWS)]),
    example={"request_id": "0123456789abcdef0123456789abcdef", "actual": 1},
)
OPERATION = Operation(PATH, (), "Feedback", record_outcomes, DOCUMENT)
