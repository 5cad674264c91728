"""The one object behind every protocol: features in or looked up, score, write down, answer."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.errors import (
    IncompleteRequestError,
    ModelFailedError,
    NoModelError,
    UnknownEntityError,
    UnscorableError,
)
from stack.errors import FeaturesUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from serving.features import StoredRow
    from serving.holder import Holder
    from serving.metrics import Metrics
    from serving.model import LoadedModel, Row, Value
    from serving.prediction_log import AppendLog
    from stack.spec import ModelSpec

GIVEN = frozenset({"request", "merged"})


@dataclass(frozen=True, slots=True)
class Request:
    """One row to score. `given` replaces the look-up; with `merge` it overlays it."""

    key: int | str | None
    given: Mapping[str, Value] | None = None
    merge: bool = False


Answer = dict[str, Any]
"""A row of the prediction log (see there for its fields), and `logged`: whether it is on file."""


class Scorer:
    """Safe to call from several threads: what it changes are counters and the log."""

    def __init__(self, spec: ModelSpec, holder: Holder, log: AppendLog, metrics: Metrics) -> None:
        self.spec, self.holder, self._log, self._metrics = spec, holder, log, metrics
        self._refuse = spec.serving.missing_features == "refuse"

    def answer(self, requests: Sequence[Request], received: datetime) -> list[Answer]:
        """Answers in the order of `requests`, all by one version and one call of it.

        Raises:
            NoModelError, UnknownEntityError, IncompleteRequestError, UnscorableError,
            ModelFailedError; FeaturesUnavailableError where the spec says refuse.

        """
        model = self.holder.current
        if model is None:
            raise NoModelError(self.holder.state)
        rows, origins = self._gather(model, requests, received)
        scores = model.score(rows)
        at = received.isoformat()
        answers = [
            _answer(model, request, row, origin, score, at)
            for request, row, origin, score in zip(requests, rows, origins, scores, strict=True)
        ]
        logged = self._log.write(answers)
        for answer in answers:
            answer["logged"] = logged
        for origin in set(origins):
            counter = self._metrics.predictions.labels(self.spec.name, model.version, origin)
            counter.inc(origins.count(origin))
        return answers

    def _gather(
        self, model: LoadedModel, requests: Sequence[Request], as_of: datetime
    ) -> tuple[list[Row], list[str]]:
        names = model.contract.features.keys()
        incomplete = [r for r in requests if r.given is None or not names <= r.given.keys()]
        for request in incomplete:
            if request.key is None or (request.given is not None and not request.merge):
                missing = ", ".join(name for name in names if name not in (request.given or {}))
                raise IncompleteRequestError(f"features: version {model.version} needs {missing}")
        keys = [request.key for request in incomplete if request.key is not None]
        found, origin = model.features.read(keys, as_of) if keys else ([], "request")
        stored = dict(zip(keys, found, strict=True))
        filled = [self._row(model, request, stored, origin) for request in requests]
        return [row for row, _ in filled], [row_origin for _, row_origin in filled]

    def _row(
        self,
        model: LoadedModel,
        request: Request,
        stored: Mapping[int | str, StoredRow | None],
        origin: str,
    ) -> tuple[Row, str]:
        """Return every feature of the contract for one request, and where they are from."""
        given, names = request.given or {}, model.contract.features
        if names.keys() <= given.keys():
            return {name: given[name] for name in names}, "request"
        values = stored[request.key] if request.key is not None else None
        if values is None and origin == "online":
            key = f"{self.spec.entity_key} {request.key}"
            raise UnknownEntityError(f"{key} is not known to the feature store")
        if given and origin == "online":
            origin = "merged"
        return self._complete(model, {**(values or {}), **given}, origin)

    def _complete(
        self, model: LoadedModel, values: Mapping[str, Value | None], origin: str
    ) -> tuple[Row, str]:
        """Fill what is null: a double goes in as NaN, anything else as the spec says."""
        row: Row = {}
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


def _answer(
    model: LoadedModel, request: Request, row: Row, origin: str, score: float, at: str
) -> Answer:
    if not 0.0 <= score <= 1.0:  # also true for NaN
        error = UnscorableError if origin in GIVEN else ModelFailedError
        raise error(f"features: version {model.version} scores them {score}, not a probability")
    contract = model.contract
    probability = round(score, 6)  # the digits that the threshold is compared with
    member = row[contract.population.feature]
    return {
        "request_id": uuid.uuid4().hex,
        "model": contract.model,
        "version": model.version,
        "role": "production",
        "received": at,
        "as_of": at,
        "entity": request.key,
        "features": row,
        "features_from": origin,
        "probability": probability,
        "prediction": 1.0 if probability >= contract.threshold else 0.0,
        "in_population": not isinstance(member, str) and 0 <= member < contract.population.below,
    }
