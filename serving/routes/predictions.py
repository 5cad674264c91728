"""`POST /models/NAME/predictions`: predictions that were made elsewhere become lines of the log.

The version in production says how they are judged; the sender says which version made them.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from core.spec import entity_text
from mlflow_server.manifest import ModelManifest
from serving.errors import InvalidRequestError, NotFoundError
from serving.http.edge import json_response, read_body, run_by_size
from serving.http.openapi import (
    EXAMPLES,
    DescribedRoute,
    Document,
    Operation,
    example_features,
)
from serving.prediction_log.append_log import AppendLog
from serving.protocols.endpoint import BATCH_LIMIT, answering_version
from serving.repository import Deployment, ModelRepository
from serving.scoring.matrix import is_in_population, outcome_fields, rounded_score
from serving.scoring.rows import Features, Line
from serving.versions.model import score_problem

PATH = "/models/{name}/predictions"
CLOCKS_DIFFER = timedelta(minutes=5)
"""How far the clock of a sender may be ahead."""


def logged_line(
    contract: ModelManifest, version: str, created: int, sent: Mapping[str, Any]
) -> Line:
    """Return the line of the log for a prediction that was made elsewhere.

    Args:
        contract: Contract of the version in production.
        version: That version; a prediction may name another one.
        created: When the model was registered, ms since 1970.
        sent: Its id, moment and score, the keys, and `features`.

    Raises:
        InvalidRequestError: The score is none of this model, or the time lies in the future.

    """
    exact_score = sent["score"]
    problem = score_problem(contract, exact_score)
    if problem:
        raise InvalidRequestError(f"score: {exact_score} is {problem}")
    moment = sent["predicted_at"]
    if moment > datetime.now(UTC) + CLOCKS_DIFFER:
        raise InvalidRequestError(f"predicted_at: {moment} lies in the future")
    features = Features(sent["features"], "request")
    key = {name: sent[name] for name in contract.entity_key}
    line = {
        "request_id": sent["request_id"],
        "model": contract.model,
        "version": sent.get("version", version),
        "created": created,
        "role": "production",
        "received": moment.isoformat(),
        "as_of": moment.isoformat(),
        "entity": entity_text(key),
        "request_data": {},
        "features": features.values,
        "features_from": features.origin,
        "in_population": is_in_population(contract, features),
    }
    return line | outcome_fields(contract, rounded_score(contract, exact_score))


class PredictionsRoute(DescribedRoute):
    """The route that writes predictions of another server into the log."""

    def __init__(self, repository: ModelRepository, log: AppendLog) -> None:
        super().__init__(PATH, self.record, methods=["POST"])
        self._repository = repository
        self._log = log

    async def record(self, request: Request) -> Response:
        """Answer a request."""
        model = self._repository.find(request.path_params["name"])
        body = await read_body(request.scope, request.receive, BATCH_LIMIT)
        content = await run_by_size(
            len(body), record_predictions, model, self._log, body
        )
        return json_response(content)

    async def describe(self) -> Operation | None:
        """Describe a body of one of the models that are watched only, if there is one."""
        names = [model.name for model in self._repository if _is_external(model)]
        if not names:
            return None
        model = self._repository.find(names[0])
        keys = model.versions.signature.entity_key
        example = {
            "request_id": "a1",
            "predicted_at": EXAMPLES["timestamp"],
            "score": 0.5,
            **{name: EXAMPLES[kind] for name, kind in keys.items()},
            "features": example_features(model.versions),
        }
        document = Document(model.schemas.prediction, example)
        return Operation(PATH, names, "Predictions", record_predictions, document)


def record_predictions(
    model: Deployment, log: AppendLog, body: bytes
) -> dict[str, Any]:
    """Take a prediction that was made elsewhere, or a list of them."""
    if not _is_external(model):
        raise NotFoundError(
            f"{model.name} is served here; for predictions that are made elsewhere: "
            f"external = true under [serving] in {model.name}.toml"
        )
    current = answering_version(model)
    schemas = model.schemas
    if body.lstrip()[:1] == b"[":
        sent_rows = schemas.predictions.validate_json(body)
    else:
        sent_rows = [schemas.prediction.validate_json(body)]
    lines = [
        logged_line(current.contract, current.version, current.origin.created, sent)
        for sent in sent_rows
    ]
    return {"recorded": len(lines), "logged": log.write(lines)}


def _is_external(model: Deployment) -> bool:
    return model.versions.spec.serving.external
