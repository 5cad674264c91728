"""The one object behind every protocol: features in or looked up, score, write down, answer."""

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mlflow_server.served_model import rounded
from serving.errors import InvalidRequestError, ModelFailedError, NoModelError, NotFoundError
from serving.holder import Holder
from serving.metrics import FAILURES, PREDICTIONS
from serving.model import LoadedModel, Row, Value, score, wrong
from serving.prediction_log import AppendLog
from stack.errors import FeaturesUnavailableError
from stack.spec import Entity, entity_text

Stored = Mapping[str, Value | None]
GIVEN = frozenset({"request", "merged"})


@dataclass(frozen=True, slots=True)
class Request:
    """One row to score. `given` replaces the look-up; with `merge` it overlays it."""

    key: Entity | None
    given: Mapping[str, Value] = field(default_factory=dict)
    merge: bool = False


Answer = dict[str, Any]
"""A row of the prediction log (see there for its fields), and `logged`: whether it is on file."""


class Scorer:
    """Safe to call from several threads: what it changes are counters and the log."""

    def __init__(self, holder: Holder, log: AppendLog) -> None:
        self.spec, self.holder, self._log = holder.spec, holder, log
        self._refuse = self.spec.serving.missing_features == "refuse"

    def answer(self, requests: Sequence[Request], received: datetime) -> list[Answer]:
        """Answers in the order of `requests`, all by one version and one call of it.

        Raises:
            NoModelError, NotFoundError, InvalidRequestError, ModelFailedError;
            FeaturesUnavailableError where the spec says refuse.

        """
        model = self.holder.current
        if model is None:
            raise NoModelError(self.holder.state)
        rows = self._gather(model, requests, received)
        at, failed = received.isoformat(), FAILURES.labels(self.spec.name, model.version)
        with failed.count_exceptions((ModelFailedError, RuntimeError)):
            scores = score(model.session, model.contract, [row for row, _ in rows])
            answers = [
                _answer(model, request.key, row, origin, found, at)
                for request, (row, origin), found in zip(requests, rows, scores, strict=True)
            ]
        logged = self._log.write(answers)
        for answer in answers:
            answer["logged"] = logged
        origins = [origin for _, origin in rows]
        for origin in set(origins):
            counter = PREDICTIONS.labels(self.spec.name, model.version, origin)
            counter.inc(origins.count(origin))
        return answers

    def _gather(
        self, model: LoadedModel, requests: Sequence[Request], as_of: datetime
    ) -> list[tuple[Row, str]]:
        """Every feature of the contract for each request, and where they are from."""
        names = model.contract.features.keys()
        complete = [names <= request.given.keys() for request in requests]
        keys = [
            _key(model, request)
            for request, whole in zip(requests, complete, strict=True)
            if not whole
        ]
        found, origin = model.features.read(keys, as_of) if keys else ([], "")
        stored = iter(found)
        return [
            ({name: request.given[name] for name in names}, "request")
            if whole
            else self._complete(model, request, next(stored), origin)
            for request, whole in zip(requests, complete, strict=True)
        ]

    def _complete(
        self, model: LoadedModel, request: Request, stored: Stored | None, origin: str
    ) -> tuple[Row, str]:
        """Fill what is null: a double goes in as NaN, anything else as the spec says."""
        if origin == "online" and stored is None:
            key = ", ".join(f"{name} {value}" for name, value in (request.key or {}).items())
            raise NotFoundError(f"{key} is not known to the feature store")
        if origin == "online" and request.given:
            origin = "merged"
        values, row = {**(stored or {}), **request.given}, {}
        for name, kind in model.contract.features.items():
            value = values.get(name)
            if value is None and kind == "double" and name in values:
                value = math.nan
            elif value is None:
                if self._refuse:
                    problem = model.features.problem or f"the stored {name} is null"
                    raise FeaturesUnavailableError(f"no features for a prediction: {problem}")
                value, origin = model.contract.defaults[name], "defaults"
            row[name] = value
        return row, origin


def _key(model: LoadedModel, request: Request) -> Entity:
    """Key to look up what is not given."""
    if request.key is None or (request.given and not request.merge):
        missing = ", ".join(name for name in model.contract.features if name not in request.given)
        raise InvalidRequestError(f"features: version {model.version} needs {missing}")
    return request.key


def _answer(
    model: LoadedModel, key: Entity | None, row: Row, origin: str, found: float, at: str
) -> Answer:
    contract = model.contract
    if what := wrong(contract, found):
        error = InvalidRequestError if origin in GIVEN else ModelFailedError
        raise error(f"features: version {model.version} scores them {found}, {what}")
    threshold = contract.threshold
    (shown,) = rounded([found], threshold).tolist()  # what the threshold is compared with
    said = shown
    if threshold is not None:
        said = 1.0 if shown >= threshold else 0.0
    member = row[contract.population.feature]
    return {
        "request_id": uuid.uuid4().hex,
        "model": contract.model,
        "version": model.version,
        "role": "production",
        "received": at,
        "as_of": at,
        "entity": None if key is None else entity_text(key),
        "features": row,
        "features_from": origin,
        "probability": None if threshold is None else shown,
        "prediction": said,
        "in_population": not isinstance(member, str) and 0 <= member < contract.population.below,
    }
