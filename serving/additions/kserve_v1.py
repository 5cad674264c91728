"""KServe V1: `instances` are `{"customer_id": 1}` or every feature by name.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from typing import Annotated, Any

from annotated_types import Len
from pydantic import BaseModel, TypeAdapter

from serving.http.edge import json_bytes
from serving.http.openapi import Document, example_features
from serving.protocols.endpoint import Reading, ScoringRoute, rows_from, score_contents
from serving.repository import Deployment
from serving.scoring.schemas import FORBID, MAX_ROWS

TAG = "KServe V1"


class Instances(BaseModel):
    model_config = FORBID
    instances: Annotated[list[Any], Len(1, MAX_ROWS)]


BODY = TypeAdapter(Instances)


def read(model: Deployment, body: bytes) -> Reading:
    rows = rows_from(model, BODY.validate_json(body).instances, place="body.instances")
    return rows, lambda answers: json_bytes(
        {"predictions": score_contents(model, rows, answers)}
    )


def predict(model: Deployment) -> Document:
    """Score instances: the entity's key, every feature by name, or both."""
    return Document(BODY, {"instances": [example_features(model.versions)]})


SCORING = [ScoringRoute(TAG, ("/v1/models/{name}:predict",), read, predict)]
