"""The one object behind every protocol: features given or looked up, score, write down, answer.

All on one event loop. A micro-batch is what arrived while the one before was at work: one look-up,
one matrix per version and one write to the log. Requests of many rows go by themselves.
"""

import asyncio
import logging
import math
import os
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from mlflow_server.served_model import rounded_one
from serving.errors import (
    InvalidRequestError,
    ModelFailedError,
    NoModelError,
    NotFoundError,
    OverloadedError,
)
from serving.metrics import FAILURES, OVERLOADED, PREDICTION_SECONDS, PREDICTIONS, SHADOW_DROPPED
from serving.model import LoadedModel, Row, score, wrong
from serving.model_versions import ModelVersions, Roles
from serving.prediction_log import AppendLog
from serving.registered import Role
from stack.errors import FeaturesUnavailableError
from stack.spec import MISSING, Entity, entity_text

ID_BYTES = 16
GIVEN = frozenset({"request", "merged"})
MICRO_BATCH_ROWS = 64
"""Rows that are scored on the event loop at once; more would hold up the others."""
TURNS = 3
"""Of the event loop, from an answer to the next request of its client: write, read, begin."""
MAX_REQUESTS = 512
MAX_ROWS = 20_000
"""Bounds of the queue: requests and rows of one model that are under way at once."""
MAX_SHADOW_ROWS = 1_000
"""Rows that may wait for the shadow; it misses what comes then."""
NULLS = {"double": math.nan, "string": MISSING}
"""What a null is to a model, as in training; of another type it is a missing feature."""
logger = logging.getLogger(__name__)

Answer = dict[str, Any]
"""A row of the prediction log (see there for its fields), and `logged`: whether it is on file."""


@dataclass(slots=True)
class PredictionRow:
    """One row on its way. `given` replaces the look-up; with `merge` it overlays it."""

    key: Entity | None
    given: dict[str, Any] = field(default_factory=dict)
    merge: bool = False
    received: datetime = field(init=False)
    features: Row = field(default_factory=dict)
    features_from: str = ""
    answer: Answer | None = None
    error: Exception | None = None


@dataclass(slots=True)
class PendingRequest:
    """Rows that came together and are answered together, or fail together."""

    rows: Sequence[PredictionRow]
    received: datetime
    done: "asyncio.Future[None]"

    @property
    def answered(self) -> bool:
        return all(row.error is None and row.answer is not None for row in self.rows)


class Scorer:
    """One model's queue and what works it off. Used on one event loop."""

    def __init__(self, holder: ModelVersions, log: AppendLog) -> None:
        self.holder = holder
        self._log = log
        self._pending: list[PendingRequest] = []
        self._batching: asyncio.Task[None] | None = None
        self._requests = 0
        self._rows = 0
        self._shadow_rows = 0
        self._tasks = set[asyncio.Task[None]]()

    def admit(self, rows: int = 1) -> None:
        """Refuse early what could not be answered: nothing of it is read yet.

        Raises:
            NoModelError, OverloadedError.

        """
        full = self._requests >= MAX_REQUESTS or (self._rows and self._rows + rows > MAX_ROWS)
        if full:
            OVERLOADED.inc()
            waiting = f"{self._requests} requests ({self._rows} rows) wait already"
            raise OverloadedError(f"{waiting}: try again")
        if self.holder.current is None:
            raise NoModelError(self.holder.state)

    async def predict(self, rows: Sequence[PredictionRow], received: datetime) -> list[Answer]:
        """Answers in the order of `rows`, by whoever the roles say for each entity.

        received: when the request arrived (UTC); clock-dependent features are of this time.

        Raises:
            NoModelError, OverloadedError, NotFoundError, InvalidRequestError, ModelFailedError;
            FeaturesUnavailableError where the spec says refuse.

        """
        self.admit(len(rows))
        for row in rows:
            row.received = received
        request = PendingRequest(rows, received, asyncio.get_running_loop().create_future())
        self._requests += 1
        self._rows += len(rows)
        try:
            if len(rows) > MICRO_BATCH_ROWS:
                await self._answer([request])
            else:
                self._pending.append(request)
                if self._batching is None:
                    self._batching = self._start(self._work_off())
                await request.done
        finally:
            self._requests -= 1
            self._rows -= len(rows)
        for row in rows:
            if row.error is not None:
                raise row.error
        return [row.answer for row in rows if row.answer is not None]

    async def ended(self) -> None:
        """Wait for what is under way, shadows included."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work_off(self) -> None:
        while self._pending:
            batch = self._next_batch()
            await self._answer(batch)
            for request in batch:
                if not request.done.done():  # who asked may have gone
                    request.done.set_result(None)
            # These answers are written first, and what their clients ask next joins those that
            # wait: else two groups take turns, in micro-batches of half the size.
            for _ in range(TURNS):
                await asyncio.sleep(0)
        self._batching = None

    def _next_batch(self) -> list[PendingRequest]:
        count = 0
        rows = 0
        for request in self._pending:
            rows += len(request.rows)
            if count and rows > MICRO_BATCH_ROWS:
                break
            count += 1
        batch = self._pending[:count]
        self._pending = self._pending[count:]
        return batch

    async def _answer(self, batch: list[PendingRequest]) -> None:
        """Give every row its answer or its error. Never raises: nobody may be left waiting."""
        roles = self.holder.roles
        rows = [row for request in batch for row in request.rows]
        try:
            await self._score_by_roles(roles, rows)
            await self._write(batch)
        except Exception as exc:  # noqa: BLE001  (whatever it is, it is the answer)
            for row in rows:
                row.error = row.error or exc
        if roles.shadow is not None:
            self._begin_shadow(roles.shadow, batch)

    async def _score_by_roles(self, roles: Roles, rows: Sequence[PredictionRow]) -> None:
        if roles.challenger is not None:
            own = [row for row in rows if roles.role_of(row.key) == "challenger"]
            if own:
                await self._score("challenger", roles.challenger, own, roles.production)
            for row in own:
                row.error = None  # production answers it: nobody pays for a trial
        rest = [row for row in rows if row.answer is None]
        if rest:
            await self._score("production", roles.model("production"), rest)

    async def _score(
        self,
        role: Role,
        model: LoadedModel,
        rows: Sequence[PredictionRow],
        instead: LoadedModel | None = None,
    ) -> None:
        """instead: who answers what `model` has no features for, if it looks up elsewhere."""
        await self._complete_all(model, rows)
        ready = [row for row in rows if row.error is None]
        if instead is not None and instead.features is not model.features:
            known = [row for row in ready if row.features_from != "defaults"]
            self._count_failures(model, role, len(ready) - len(known))
            ready = known
        if len(ready) > MICRO_BATCH_ROWS or role == "shadow":
            await asyncio.to_thread(self._predict, role, model, ready)
        elif ready:
            self._predict(role, model, ready)

    def _predict(self, role: Role, model: LoadedModel, rows: Sequence[PredictionRow]) -> None:
        ids = os.urandom(ID_BYTES * len(rows)).hex()
        width = 2 * ID_BYTES
        for n, (row, result) in enumerate(zip(rows, _scores(model, rows), strict=True)):
            try:
                row.answer = _answer(role, model, ids[width * n : width * (n + 1)], row, result)
            except Exception as exc:  # noqa: BLE001  (a row's failure is its request's)
                row.error = exc
                if not isinstance(exc, InvalidRequestError):
                    self._count_failures(model, role, 1)

    def _count_failures(self, model: LoadedModel, role: Role, count: int) -> None:
        if count:
            FAILURES.labels(self.holder.spec.name, model.version, role).inc(count)

    async def _write(self, batch: Sequence[PendingRequest]) -> None:
        """Write all rows in one go; a request that failed leaves none."""
        answered = [request for request in batch if request.answered]
        answers = [row.answer for request in answered for row in request.rows if row.answer]
        if not answers:
            return
        if len(answers) > MICRO_BATCH_ROWS:
            logged = await asyncio.to_thread(self._log.write, answers)
        else:
            logged = self._log.write(answers)
        now = datetime.now(UTC)
        counts: dict[Any, int] = {}
        for request in answered:
            seconds = (now - request.received).total_seconds()
            timed = set()
            for row in request.rows:
                answer = row.answer or {}
                answer["logged"] = logged
                predictions, durations = _meters(
                    answer["model"], answer["version"], answer["role"], answer["features_from"]
                )
                counts[predictions] = counts.get(predictions, 0) + 1
                timed.add(durations)
            for durations in timed:
                durations.observe(seconds)
        for predictions, count in counts.items():
            predictions.inc(count)

    async def _complete_all(self, model: LoadedModel, rows: Sequence[PredictionRow]) -> None:
        """Give each row every feature of the contract, or an error."""
        names = model.contract.features.keys()
        lookups: list[PredictionRow] = []
        for row in rows:
            if names <= row.given.keys():
                continue
            if row.key is None or (row.given and not row.merge):
                missing = ", ".join(name for name in names if name not in row.given)
                text = f"features: version {model.version} needs {missing}"
                row.error = InvalidRequestError(text)
            else:
                lookups.append(row)
        stored: dict[int, Any] = {}
        origin = ""
        if lookups:
            keys = [row.key or {} for row in lookups]
            values, origin = await model.features.read(keys, [row.received for row in lookups])
            stored = dict(zip(map(id, lookups), values, strict=True))
        for row in rows:
            if row.error is None:
                try:
                    self._complete(model, row, stored.get(id(row)), origin)
                except (NotFoundError, FeaturesUnavailableError) as exc:
                    row.error = exc

    def _complete(self, model: LoadedModel, row: PredictionRow, stored: Any, origin: str) -> None:
        """Fill what is null: a double and a text as in training, anything else as the spec says."""
        features = model.contract.features
        if stored and not row.given and None not in stored.values():
            row.features, row.features_from = stored, origin
            return
        if features.keys() <= row.given.keys():
            origin = "request"
        elif origin == "online":
            if stored is None:
                key = ", ".join(f"{name} {value}" for name, value in (row.key or {}).items())
                raise NotFoundError(f"{key} is not known to the feature store")
            if row.given:
                origin = "merged"
        values = {**(stored or {}), **row.given}
        row.features = {}
        for name, kind in features.items():
            value = values.get(name)
            if value is None and name in values:
                value = NULLS.get(kind)
            if value is None:
                if self.holder.spec.serving.missing_features == "refuse":
                    problem = model.features.problem or f"the stored {name} is null"
                    raise FeaturesUnavailableError(f"no features for a prediction: {problem}")
                value = model.contract.defaults[name]
                origin = "defaults"
            row.features[name] = value
        row.features_from = origin

    def _begin_shadow(self, model: LoadedModel, batch: Sequence[PendingRequest]) -> None:
        """Have the shadow score the same rows after they are answered; nobody waits for it."""
        rows: list[PredictionRow] = []
        for row in (row for request in batch if request.answered for row in request.rows):
            rows.append(PredictionRow(row.key, row.given, row.merge))
            rows[-1].received = row.received
        if self._shadow_rows + len(rows) > MAX_SHADOW_ROWS:
            SHADOW_DROPPED.labels(self.holder.spec.name).inc(len(rows))
        elif rows:
            self._shadow_rows += len(rows)
            self._start(self._shadow(model, rows))

    async def _shadow(self, model: LoadedModel, rows: Sequence[PredictionRow]) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._score("shadow", model, rows)
            now = datetime.now(UTC)
            await self._write([PendingRequest([row], now, loop.create_future()) for row in rows])
        except Exception:
            logger.exception("%s: the shadow failed", self.holder.spec.name)
        finally:
            self._shadow_rows -= len(rows)


@lru_cache
def _meters(model: str, version: str, role: str, features_from: str) -> tuple[Any, Any]:
    """Return what counts rows, and what times their requests; to find them takes as long."""
    return (
        PREDICTIONS.labels(model, version, role, features_from),
        PREDICTION_SECONDS.labels(model, version, role),
    )


def _scores(model: LoadedModel, rows: Sequence[PredictionRow]) -> list[float | Exception]:
    """Score all at once; where that fails one by one, so that a row fails alone.

    Rounded as they are answered; what is no score stays what it is.
    """
    if not rows:
        return []
    try:
        scores = score(model.session, model.contract, [row.features for row in rows])
        return [rounded_one(each, model.contract.threshold) for each in scores]
    except Exception as exc:  # noqa: BLE001  (onnxruntime's own, among others)
        if len(rows) == 1:
            return [exc]
        return [each for row in rows for each in _scores(model, [row])]


def _answer(
    role: Role, model: LoadedModel, request_id: str, row: PredictionRow, result: float | Exception
) -> Answer:
    """result: the rounded score, as the threshold is compared with it; or an error."""
    contract = model.contract
    if isinstance(result, Exception):
        raise result
    if what := wrong(contract, result):
        error = InvalidRequestError if row.features_from in GIVEN else ModelFailedError
        raise error(f"features: version {model.version} scores them {result}, {what}")
    at = row.received.isoformat()
    threshold = contract.threshold
    member = row.features[contract.population.feature]
    return {
        "request_id": request_id,
        "model": contract.model,
        "version": model.version,
        "role": role,
        "received": at,
        "as_of": at,
        "entity": None if row.key is None else entity_text(row.key),
        "features": row.features,
        "features_from": row.features_from,
        "probability": None if threshold is None else result,
        "prediction": result if threshold is None else 1.0 if result >= threshold else 0.0,
        "in_population": not isinstance(member, str) and 0 <= member < contract.population.below,
    }
