"""MLflow's scoring protocol: `dataframe_records` and `dataframe_split`.

Source: mlflow/pyfunc/scoring_server/__init__.py of MLflow 3.17, and
https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#api-spec
"""

from typing import Annotated, Any

from annotated_types import Len
from pydantic import BaseModel, TypeAdapter

from serving.errors import InvalidRequestError
from serving.http.edge import json_bytes
from serving.http.openapi import Document, example_features
from serving.protocols.endpoint import (
    Answers,
    Reading,
    ScoringRoute,
    rows_from,
    score_contents,
)
from serving.repository import Deployment
from serving.scoring.schemas import FORBID, MAX_ROWS

TAG = "MLflow"
FORMATS = "dataframe_records or dataframe_split"
Many = Len(1, MAX_ROWS)


class Split(BaseModel):
    """Rows as pandas' `to_dict(orient="split")` gives them."""

    model_config = FORBID
    columns: list[str]
    data: Annotated[list[list[Any]], Many]
    index: list[Any] | None = None

    def records(self) -> list[dict[str, Any]]:
        count = len(self.columns)
        problem = "" if len(set(self.columns)) == count else "columns: a name is twice"
        for position, values in enumerate(self.data):
            if len(values) != count:
                problem = f"data.{position}: {len(values)} values for {count} columns"
        if problem:
            raise InvalidRequestError(f"body.dataframe_split.{problem}")
        return [dict(zip(self.columns, values, strict=True)) for values in self.data]


class Invocation(BaseModel):
    """A frame in one of two formats. `params` are for models that have some: these have none."""

    model_config = FORBID
    dataframe_records: Annotated[list[dict[str, Any]], Many] | None = None
    dataframe_split: Split | None = None
    params: Annotated[dict[str, Any], Len(0, 0)] | None = None


BODY = TypeAdapter(Invocation)


def read(model: Deployment, body: bytes) -> Reading:
    invocation = BODY.validate_json(body)
    records = invocation.dataframe_records
    split = invocation.dataframe_split
    if (records is None) == (split is None):
        raise InvalidRequestError(f"body: expected one of {FORMATS}")
    place = "body.dataframe_split" if split else "body.dataframe_records"
    rows = rows_from(model, split.records() if split else records, place)

    def write(answers: Answers) -> bytes:
        contents = score_contents(model, rows, answers)
        scores = [{"score": content["score"]} for content in contents]
        return json_bytes({"predictions": scores, "answers": contents})

    return rows, write


def score(model: Deployment) -> Document:
    """Score a frame, as `mlflow models serve` does."""
    return Document(BODY, {"dataframe_records": [example_features(model.versions)]})


SCORING = [
    ScoringRoute(TAG, ("/invocations", "/models/{name}/invocations"), read, score)
]
