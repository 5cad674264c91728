"""MLflow's scoring protocol, as `mlflow models serve` answers it.

Source: mlflow/pyfunc/scoring_server/__init__.py of MLflow 3.17, and
https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#api-spec
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from serving.edge import ErrorForm, in_words, json_response
from serving.errors import InvalidRequestError
from serving.protocols import (
    Protocol,
    Scores,
    Served,
    Tells,
    Translate,
    Write,
    default_of,
    requests_of,
    scored,
    version_of,
)
from serving.schemas import FORBID, MAX_ROWS
from serving.scorer import Answer, Request

CODES = {
    401: "UNAUTHENTICATED", 404: "RESOURCE_DOES_NOT_EXIST", 429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE",
}  # fmt: skip
FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")


class MlflowError(BaseModel):
    error_code: str
    message: str


def _error(status: int, detail: Any) -> dict[str, Any]:
    return {"error_code": CODES.get(status, "BAD_REQUEST"), "message": in_words(detail)}


ERRORS = ErrorForm(MlflowError, _error, {422: 400})

Cell = int | float | str | bool | None
Record = Mapping[str, Cell]
Rows = Annotated[list[Record], Field(min_length=1, max_length=MAX_ROWS)]


class Scored(BaseModel):
    score: float


class Split(BaseModel):
    """`DataFrame.to_dict(orient="split")`."""

    model_config = FORBID
    columns: Annotated[list[str], Field(min_length=1)]
    data: Annotated[list[list[Cell]], Field(min_length=1, max_length=MAX_ROWS)]
    index: list[Any] | None = None

    def records(self) -> list[Record]:
        if len(set(self.columns)) < len(self.columns):
            raise InvalidRequestError("body.dataframe_split.columns: a name is there twice")
        for position, row in enumerate(self.data):
            if len(row) != len(self.columns):
                raise InvalidRequestError(
                    f"body.dataframe_split.data.{position}: {len(row)} values for "
                    f"{len(self.columns)} columns"
                )
        return [dict(zip(self.columns, row, strict=True)) for row in self.data]


class Invocation(BaseModel):
    """Exactly one of the formats. `params` are for models that have some: these have none."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={
        "oneOf": [{"required": [name]} for name in FORMATS]})  # fmt: skip
    dataframe_split: Split = Field(default=None)  # type: ignore[assignment]
    dataframe_records: Rows = Field(default=None)  # type: ignore[arg-type]
    instances: Rows = Field(default=None)  # type: ignore[arg-type]
    inputs: Rows | Mapping[str, list[Cell]] | Record = Field(default=None)  # type: ignore[assignment]
    params: dict[str, Any] | None = None

    def records(self) -> Sequence[Record]:
        given = [name for name in FORMATS if name in self.model_fields_set]
        if len(given) != 1:
            raise InvalidRequestError(f"body: expected one of {', '.join(FORMATS)}, found {given}")
        found = getattr(self, given[0])
        if isinstance(found, Split):
            return found.records()
        return _of_columns(found) if isinstance(found, Mapping) else found


def _of_columns(columns: Mapping[str, Any]) -> list[Record]:
    """Rows of columns by name; single values are one row."""
    lists = {name: found if isinstance(found, list) else [found] for name, found in columns.items()}
    if len({len(found) for found in lists.values()}) != 1:
        raise InvalidRequestError("body.inputs: the columns have different lengths")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def routes(models: Sequence[Served]) -> Iterator[Scores | Tells]:
    found = version("mlflow")

    async def ping(_: HttpRequest) -> Response:
        version_of(default_of(models))
        return PlainTextResponse("\n")

    async def mlflow_version(_: HttpRequest) -> Response:
        return PlainTextResponse(found)

    for path in ("/ping", "/health"):
        text = "MLflow: a version answers"
        yield Tells(path, text, ping, str, PlainTextResponse, refuses=(503,))
    yield Tells("/version", "MLflow: its version", mlflow_version, str, PlainTextResponse)
    for model in models:
        title, read = model.schemas.request.__name__, translate(model)
        rows: Any = (list[model.schemas.scored], ...)  # type: ignore[name-defined]
        answer = create_model(f"{title}Invoked", predictions=(list[Scored], ...), answers=rows)
        for prefix in (*([""] if model.default else []), *(f"/models/{n}" for n in model.names)):
            path = f"{prefix}/invocations"
            yield Scores(model, path, "MLflow: score", read, Invocation, answer)


def translate(model: Served) -> Translate:
    """What the registered model returns for a frame (`score`), and beside it all we know of it."""
    adapter = TypeAdapter(model.schemas.flat)

    def read(body: bytes, _: HttpRequest) -> tuple[Sequence[Request], Write]:
        records = Invocation.model_validate_json(body, strict=True).records()
        asked = requests_of(model, adapter.validate_python(records))

        def write(answers: Sequence[Answer]) -> Response:
            rows = scored(model, asked, answers)
            scores = [{"score": row["score"]} for row in rows]
            return json_response({"predictions": scores, "answers": rows})

        return asked, write

    return read


OWN = frozenset({"/invocations", "/ping", "/health", "/version"})
PROTOCOL = Protocol(
    ERRORS,
    routes,
    lambda path: path in OWN or path.endswith("/invocations"),
    (("POST", "/models/{name}/invocations"),),
)
