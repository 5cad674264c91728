"""MLflow's scoring protocol, as `mlflow models serve` answers it.

Source: mlflow/pyfunc/scoring_server/__init__.py of MLflow 3.17, and
https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#api-spec
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from core.packages import package_version
from serving.edge import ErrorForm, in_words, json_response
from serving.errors import InvalidRequestError
from serving.openapi import Operation
from serving.protocols import (
    Parsed,
    PredictRoute,
    Protocol,
    rows_from,
    scored,
    version_of,
)
from serving.repository import Deployment, ModelRepository
from serving.schemas import FORBID, MAX_ROWS, Schemas
from serving.scorer import Answer

TAG = "MLflow"
MLFLOW_VERSION = package_version("mlflow")
CODES = {
    401: "UNAUTHENTICATED",
    404: "RESOURCE_DOES_NOT_EXIST",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}
FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
ONE_OF: list[JsonValue] = [{"required": [name]} for name in FORMATS]
Cell = int | float | str | bool | None
Record = Mapping[str, Cell]
Rows = Annotated[list[Record], Field(min_length=1, max_length=MAX_ROWS)]
Answered = TypeVar("Answered")


class MlflowError(BaseModel):
    error_code: str
    message: str


def write_error(status: int, detail: Any) -> dict[str, str]:
    return {"error_code": CODES.get(status, "BAD_REQUEST"), "message": in_words(detail)}


ERRORS = ErrorForm(MlflowError, write_error, 400)


class Score(BaseModel):
    score: float | list[float]


class Invoked(BaseModel, Generic[Answered]):
    predictions: list[Score]
    answers: list[Answered]


class Split(BaseModel):
    model_config = FORBID
    columns: Annotated[list[str], Field(min_length=1)]
    data: Annotated[list[list[Cell]], Field(min_length=1, max_length=MAX_ROWS)]
    index: list[Any] | None = None

    def records(self) -> list[Record]:
        where, width = "body.dataframe_split", len(self.columns)
        if len(set(self.columns)) < width:
            raise InvalidRequestError(f"{where}.columns: a name is there twice")
        for position, row in enumerate(self.data):
            if len(row) != width:
                text = f"{len(row)} values for {width} columns"
                raise InvalidRequestError(f"{where}.data.{position}: {text}")
        return [dict(zip(self.columns, row, strict=True)) for row in self.data]


class Invocation(BaseModel):
    """Exactly one of the formats. `params` are for models that have some: these have none."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"oneOf": ONE_OF})
    dataframe_split: Split = Field(default=None)  # type: ignore[assignment]
    dataframe_records: Rows = []
    instances: Rows = []
    inputs: Rows | Mapping[str, list[Cell]] | Record = []
    params: dict[str, Any] | None = None

    def records(self) -> Sequence[Record]:
        given = [name for name in FORMATS if name in self.model_fields_set]
        if len(given) != 1:
            raise InvalidRequestError(
                f"body: expected one of {', '.join(FORMATS)}, found {given}"
            )
        found: Split | Rows | Mapping[str, Any] = getattr(self, given[0])
        if isinstance(found, Split):
            return found.records()
        if not isinstance(found, Mapping):
            return found
        # Columns by name; single values are one row.
        columns = [
            value if isinstance(value, list) else [value] for value in found.values()
        ]
        if len({len(column) for column in columns}) != 1:
            raise InvalidRequestError("body.inputs: the columns have different lengths")
        return [
            dict(zip(found, row, strict=True)) for row in zip(*columns, strict=True)
        ]


def read(model: Deployment, body: bytes, _request: Request) -> Parsed:
    rows = rows_from(model, Invocation.model_validate_json(body, strict=True).records())

    def write(answers: Sequence[Answer]) -> Response:
        found = scored(model, rows, answers)
        scores = [{"score": row["score"]} for row in found]
        return json_response({"predictions": scores, "answers": found})

    return rows, write


def operation(path: str, schemas: Schemas) -> Operation:
    text = "Score a frame in any of MLflow's formats, as `mlflow models serve` does."
    answer = Invoked[schemas.scored]  # type: ignore[name-defined]
    return Operation(path, TAG, "Score", text, Invocation, answer, ERRORS)


def add_info(router: APIRouter, repository: ModelRepository) -> None:
    shared: Any = {"tags": [TAG], "responses": ERRORS.responses}
    shared["response_class"] = PlainTextResponse

    @router.get("/ping", summary="A version answers", **shared)
    @router.get("/health", summary="A version answers", **shared)
    async def ping() -> Response:
        """Answer as soon as a version of the default model does; 503 until then."""
        version_of(repository.first())
        return PlainTextResponse("\n")

    @router.get("/version", summary="MLflow's version", **shared)
    async def mlflow_version() -> Response:
        """Name the version of MLflow, as its own scoring server does."""
        return PlainTextResponse(MLFLOW_VERSION)


ROUTE = PredictRoute(("/invocations", "/models/{name}/invocations"), read, operation)
OWN = ("/ping", "/health", "/version")
PROTOCOL = Protocol(
    ERRORS,
    lambda path: path in OWN or path.endswith("/invocations"),
    (ROUTE,),
    add_info,
)
