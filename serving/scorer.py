"""The one object behind every protocol: features given or looked up, score, write down, answer.

A micro-batch is what arrived while the one before was at work: one look-up, one matrix per version,
one write to the log. Requests of many rows go by themselves. All on one event loop.
"""

import asyncio
import logging
import math
import os
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any
from zlib import crc32

from core.errors import FeaturesUnavailableError
from core.spec import MISSING, Entity, entity_text
from mlflow_server.served_model import LookupSpecification
from serving import errors
from serving.lookup import StoredRow
from serving.metrics import (
    FAILURES,
    OVERLOADED,
    PREDICTION_SECONDS,
    PREDICTIONS,
    SHADOW_DROPPED,
)
from serving.model import (
    LoadedModel,
    Role,
    Score,
    explain,
    outcome,
    rounded_score,
    score,
    wrong,
)
from serving.model_versions import ModelVersions, Roles
from serving.prediction_log import AppendLog
from serving.worker import REQUEST_ID

MICRO_BATCH = (
    64  # requests answered together, and rows scored on the event loop at once
)
TURNS = 3  # of the event loop, from an answer to its client's next request: write, read, begin
MAX_REQUESTS = 256  # of one model, under way at once
MAX_ROWS = 20_000  # of these requests
MAX_SHADOW_ROWS = 1_000  # may wait for the shadow; it misses what comes then
NULLS = {"float32": math.nan, "double": math.nan, "string": MISSING}
"""What a null is to a model, as in training; of another type it is a missing feature."""
COUNTED_BY = itemgetter("model", "version", "role", "features_from")
TIMED_BY = itemgetter("model", "version", "role")
_counter = lru_cache(PREDICTIONS.labels)  # to find a meter takes as long as to use it
_explaining = asyncio.Lock()  # one in a worker, whatever it serves
_timer = lru_cache(PREDICTION_SECONDS.labels)
logger = logging.getLogger(__name__)

Values = Mapping[str, Any]
Answer = dict[str, Any]
"""A row of the prediction log, and `logged`: whether it is on file."""


@dataclass(slots=True)
class PredictionRow:
    """One row on its way. `given` replaces the look-up; with `merge` it overlays it."""

    key: Entity | None
    given: dict[str, Any] = field(default_factory=dict)
    merge: bool = False
    request_data: dict[str, Any] = field(default_factory=dict)
    received: datetime = field(init=False)
    features: dict[str, Any] = field(init=False)
    features_from: str = ""
    request_id: str = ""
    is_prediction: bool = True
    answer: Answer = field(default_factory=dict)
    error: Exception | None = None


@dataclass(slots=True)
class PendingRequest:
    """Rows that are answered together, or fail together."""

    rows: Sequence[PredictionRow]
    received: datetime
    done: asyncio.Future[None] = field(default_factory=asyncio.Future)

    @property
    def failed(self) -> bool:
        return any(row.error is not None for row in self.rows)


class Scorer:
    """One model's queue and what works it off."""

    def __init__(self, holder: ModelVersions, log: AppendLog) -> None:
        self.holder = holder
        self._log = log
        self._pending: list[PendingRequest] = []
        self._is_batching = False
        self._requests = self._rows = self._shadow_rows = 0
        self._tasks = set[asyncio.Task[None]]()

    def admit(self, rows: int = 1) -> None:
        """Raise OverloadedError or NoModelError for what could not be answered."""
        if self._requests >= MAX_REQUESTS or (
            self._rows and self._rows + rows > MAX_ROWS
        ):
            OVERLOADED.inc()
            waiting = (
                f"{self._requests} requests ({self._rows} rows) wait already: try again"
            )
            raise errors.OverloadedError(waiting)
        problem = self.holder.problem
        if problem:
            raise errors.NoModelError(problem)

    async def predict(
        self, rows: Sequence[PredictionRow], received: datetime
    ) -> list[Answer]:
        """Answers in the order of `rows`. Raises the first row's error.

        received: when the request arrived (UTC); clock-dependent features are of this time.
        """
        self.admit(len(rows))
        for position, row in enumerate(rows):
            row.received = received
            if self.holder.proxied:
                row.request_id = _repeated_id(self.holder.spec.name, position, row)
        request = PendingRequest(rows, received)
        self._requests += 1
        self._rows += len(rows)
        try:
            if len(rows) > MICRO_BATCH:
                await self._answer([request])
            else:
                self._pending.append(request)
                if not self._is_batching:
                    self._is_batching = True
                    self._start(self._work_off())
                await request.done
        finally:
            self._requests -= 1
            self._rows -= len(rows)
        for row in rows:
            if row.error is not None:
                raise row.error
        return [row.answer for row in rows]

    async def explain(
        self, rows: Sequence[PredictionRow], received: datetime
    ) -> list[Answer]:
        """Answer one row as `predict` does, with `why`; nothing is logged or counted."""
        if _explaining.locked():
            raise errors.OverloadedError("another explanation is under way: try again")
        async with _explaining:
            row = rows[0]
            row.received = received
            row.is_prediction = False
            roles = self.holder.roles
            await self._ask(roles, rows)
            if row.error is not None:
                raise row.error
            model = getattr(roles, row.answer["role"])
            prediction = row.answer["prediction"]
            explanation = await asyncio.to_thread(
                explain, model, row.features, prediction
            )
        return [row.answer | {"logged": False, "why": explanation}]

    async def ended(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work_off(self) -> None:
        while self._pending:
            batch = self._pending[:MICRO_BATCH]
            del self._pending[:MICRO_BATCH]
            await self._answer(batch)
            for request in batch:
                if not request.done.done():  # who asked may have gone
                    request.done.set_result(None)
            # These answers are written first, and what their clients ask next joins those that
            # wait: else two groups take turns, in micro-batches of half the size.
            for _ in range(TURNS):
                if len(self._pending) < MICRO_BATCH:
                    await asyncio.sleep(0)
        self._is_batching = False

    async def _answer(self, batch: Sequence[PendingRequest]) -> None:
        """Give every row its answer or its error. Never raises."""
        roles = self.holder.roles
        rows = [row for request in batch for row in request.rows]
        try:
            await self._ask(roles, rows)
            await self._write(batch)
        except Exception as exc:  # noqa: BLE001  (whatever it is, it is the answer)
            for row in rows:
                row.error = row.error or exc
        if roles.shadow is not None:
            self._start(self._shadow(roles.shadow, batch))

    async def _ask(self, roles: Roles, rows: Sequence[PredictionRow]) -> None:
        if roles.production is None:
            raise errors.NoModelError(self.holder.state)
        if roles.challenger is not None:
            trial_rows = [row for row in rows if roles.asks_challenger(row.key)]
            await self._score("challenger", roles.challenger, trial_rows)
            for row in trial_rows:
                row.error = None  # production answers it: nobody pays for a trial
        rest = [row for row in rows if not row.answer]
        await self._score("production", roles.production, rest)

    async def _score(
        self, role: Role, model: LoadedModel, rows: Sequence[PredictionRow]
    ) -> None:
        await self._complete(model, rows)
        if role == "challenger" and model.features is not self.holder.features:
            for row in rows:  # where it looks up elsewhere, production may know more
                if row.features_from == "defaults":
                    self._fail(
                        role, model, row, FeaturesUnavailableError("no features")
                    )
        ready = [row for row in rows if row.error is None]
        if role == "shadow" or len(ready) > MICRO_BATCH or model.thread:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(model.thread, self._predict, role, model, ready)
        else:
            self._predict(role, model, ready)

    async def _complete(
        self, model: LoadedModel, rows: Sequence[PredictionRow]
    ) -> None:
        """Give each row every feature of the contract, or an error."""
        names = model.contract.features.keys()
        fields = model.contract.lookup.request_data
        lookups: list[PredictionRow] = []
        for row in rows:
            if names <= row.given.keys():
                self._fill(model, row, row.given, "request")
            elif row.key is None or (row.given and not row.merge):
                missing = ", ".join(name for name in names if name not in row.given)
                needs = f"features: version {model.version} needs {missing}"
                row.error = errors.InvalidRequestError(needs)
            elif fields.keys() - row.request_data.keys():
                absent_fields = sorted(fields.keys() - row.request_data.keys())
                missing = ", ".join(
                    f"{name} ({fields[name]})" for name in absent_fields
                )
                needs = f"{missing}: version {model.version} needs it beside the key, found none"
                row.error = errors.InvalidRequestError(needs)
            else:
                lookups.append(row)
        if not lookups:
            return
        keys = []
        for row in lookups:
            request_data = {name: row.request_data[name] for name in fields}
            keys.append({**(row.key or {}), **request_data})
        moments = [row.received for row in lookups]
        stored_rows, origin = await model.features.read(keys, moments)
        for row, stored in zip(lookups, stored_rows, strict=True):
            self._complete_from_store(model, row, stored, origin)

    def _complete_from_store(
        self,
        model: LoadedModel,
        row: PredictionRow,
        stored: StoredRow | None,
        origin: str,
    ) -> None:
        """Give a row the stored features, overlaid with those of the request.

        stored: None: the store knows no such entity, or, of the cache, nothing is remembered.
        """
        if stored is None and origin == "online":
            text = f"{_key_text(row.key or {})} is not known to the feature store"
            row.error = errors.NotFoundError(text)
            return
        features: dict[str, Any] = {}
        reason = ""
        if stored is not None:
            features = stored.features
            reason = _reason(model.contract.lookup, row.key or {}, stored)
        if origin == "online" and row.given:
            origin = "merged"
        elif origin == "online" and stored is not None and stored.absent_views:
            origin = "partly"
        if features and not row.given and None not in features.values():
            row.features = features
            row.features_from = origin
        else:
            self._fill(model, row, {**features, **row.given}, origin, reason)

    def _fill(
        self,
        model: LoadedModel,
        row: PredictionRow,
        values: Values,
        origin: str,
        reason: str = "",
    ) -> None:
        """Fill what is null: a double and a text as in training, anything else as the spec says.

        reason: why stored features may be null.
        """
        row.features = {}
        for name, kind in model.contract.features.items():
            value = values.get(name)
            if value is None and name in values:
                value = NULLS.get(kind)
            if value is None:
                if self.holder.spec.serving.missing_features == "refuse":
                    problem = model.features.problem or reason or f"{name} is null"
                    text = f"no features for a prediction: {problem}"
                    row.error = FeaturesUnavailableError(text)
                    return
                value = model.contract.defaults[name]
                origin = "defaults"
            row.features[name] = value
        row.features_from = origin

    def _predict(
        self, role: Role, model: LoadedModel, rows: Sequence[PredictionRow]
    ) -> None:
        """Score all at once; where that fails one by one, so that a row fails alone."""
        if not rows:
            return
        try:
            scores = score(
                model.session, model.contract, [row.features for row in rows]
            )
        except Exception as exc:  # noqa: BLE001  (onnxruntime's own, among others)
            if len(rows) == 1:
                self._fail(role, model, rows[0], exc)
                return
            for row in rows:
                self._predict(role, model, [row])
            return
        for row, exact_score in zip(rows, scores, strict=True):
            rounded = rounded_score(model.contract, exact_score)
            problem = wrong(model.contract, rounded)
            if problem:
                text = f"features: version {model.version} scores them {rounded}, {problem}"
                if row.features_from in {"request", "merged"}:
                    row.error = errors.InvalidRequestError(text)
                else:
                    self._fail(role, model, row, errors.ModelFailedError(text))
            else:
                row.answer = _answer(role, model, row, rounded)

    def _fail(
        self, role: Role, model: LoadedModel, row: PredictionRow, error: Exception
    ) -> None:
        row.error = error
        if row.is_prediction:
            FAILURES.labels(self.holder.spec.name, model.version, role).inc()

    async def _write(self, requests: Sequence[PendingRequest]) -> None:
        """Log and count all rows at once; a request that failed leaves none."""
        answered_requests = [request for request in requests if not request.failed]
        answers = [row.answer for request in answered_requests for row in request.rows]
        if not answers:
            return
        write = self._log.write
        many = len(answers) > MICRO_BATCH
        logged = await asyncio.to_thread(write, answers) if many else write(answers)
        for answer in answers:
            answer["logged"] = logged
        for labels, count in Counter(map(COUNTED_BY, answers)).items():
            _counter(*labels).inc(count)
        now = datetime.now(UTC)
        for request in answered_requests:
            seconds = (now - request.received).total_seconds()
            for labels in {TIMED_BY(row.answer) for row in request.rows}:
                _timer(*labels).observe(seconds)

    async def _shadow(
        self, model: LoadedModel, batch: Sequence[PendingRequest]
    ) -> None:
        rows = [
            copy(row) for request in batch if not request.failed for row in request.rows
        ]
        if self._shadow_rows + len(rows) > MAX_SHADOW_ROWS:
            SHADOW_DROPPED.labels(self.holder.spec.name).inc(len(rows))
            return
        self._shadow_rows += len(rows)
        try:
            await self._score("shadow", model, rows)
            now = datetime.now(UTC)
            await self._write([PendingRequest([row], now) for row in rows])
        except Exception:
            logger.exception("%s: the shadow failed", self.holder.spec.name)
        finally:
            self._shadow_rows -= len(rows)


def _reason(lookup: LookupSpecification, key: Entity, stored: StoredRow) -> str:
    """Say why stored features are null: which views have no row of which key."""
    if not stored.features:
        return "the stored values cannot be read"
    sentences = []
    for view in lookup.views:
        if view.name in stored.absent_views:
            own_key = {column: key[column] for column in view.keys}
            sentences.append(f"view {view.name} has no row of {_key_text(own_key)}")
    return "; ".join(sentences)


def _key_text(key: Entity) -> str:
    return ", ".join(f"{column} {value}" for column, value in key.items())


def _repeated_id(model: str, position: int, row: PredictionRow) -> str:
    """Return an id of a row that is the same where a proxy repeats its request elsewhere."""
    content = repr((model, position, row.key, row.given, row.request_data))
    return f"{REQUEST_ID.get()}-{crc32(content.encode()):08x}"


def _answer(
    role: Role, model: LoadedModel, row: PredictionRow, result: Score
) -> Answer:
    """A row of the log of the rounded score `result`."""
    contract = model.contract
    at = row.received.isoformat()
    population = contract.population
    member = row.features[population.feature] if population else 0
    return {
        "request_id": row.request_id or os.urandom(16).hex(),
        "model": contract.model,
        "version": model.version,
        "role": role,
        "received": at,
        "as_of": at,
        "entity": None if row.key is None else entity_text(row.key),
        "request_data": row.request_data,
        "features": row.features,
        "features_from": row.features_from,
        **outcome(contract, result),
        "in_population": population is None
        or (not isinstance(member, str) and 0 <= member < population.below),
    }
