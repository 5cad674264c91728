"""The one object behind every protocol: features in or looked up, score, write down, answer.

All on the event loop: what arrives in one tick of it is one read of the features, one matrix per
version and one write to the log. Requests of many rows go by themselves, scored in a thread.
"""

import asyncio
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mlflow_server.served_model import rounded_one
from serving.announcement import Role
from serving.errors import (
    InvalidRequestError,
    ModelFailedError,
    NoModelError,
    NotFoundError,
    OverloadedError,
)
from serving.holder import Holder, Roles
from serving.metrics import (
    FAILURES,
    OVERLOADED,
    PREDICTION_SECONDS,
    PREDICTIONS,
    SHADOW_DROPPED,
    Tally,
)
from serving.model import LoadedModel, Row, Value, score, wrong
from serving.prediction_log import AppendLog
from stack.errors import FeaturesUnavailableError
from stack.spec import MISSING, Entity, entity_text

ID_BYTES = 16
GIVEN = frozenset({"request", "merged"})
JOINED = 64
"""Rows up to which a request shares a tick with others; more are scored beside the loop."""
MOST_WAITING = 20_000
"""Rows that may wait at once; who comes then is turned away."""
NULLS = {"double": math.nan, "string": MISSING}
MOST_SHADOWED = 1_000
"""Rows that may wait for the shadow; it misses what comes then."""
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Request:
    """One row to score. `given` replaces the look-up; with `merge` it overlays it."""

    key: Entity | None
    given: dict[str, Value] = field(default_factory=dict)
    merge: bool = False


Answer = dict[str, Any]
"""A row of the prediction log (see there for its fields), and `logged`: whether it is on file."""


@dataclass(slots=True)
class Waiting:
    """Rows that came together and are answered together, or fail together."""

    requests: Sequence[Request]
    received: datetime
    done: "Callable[[Waiting], None]"
    """Told once, on the event loop: every row has its answer, or there is an error."""
    answers: list[Any]
    since: datetime
    """From when its time is counted."""
    at: str
    """`received`, as the log has it."""
    error: Exception | None = None


@dataclass(slots=True)
class Item:
    """One row on its way: where its answer goes, and what it is scored with."""

    waiting: Waiting
    position: int
    request: Request


Ready = tuple[Item, Row, str]
"""An item, every feature of it, and where they are from."""
Scored = tuple[Role, LoadedModel, list[tuple[Item, Answer]]]


class Scorer:
    """Used on one event loop."""

    def __init__(self, holder: Holder, log: AppendLog) -> None:
        self.spec, self.holder, self._log = holder.spec, holder, log
        self._refuse = self.spec.serving.missing_features == "refuse"
        self._waiting: list[Waiting] = []
        self._rows_inside = self._rows_shadowed = 0
        self._tasks = set[asyncio.Task[None]]()
        self._tallies = dict[tuple[str, Role], Tally]()

    async def answer(self, requests: Sequence[Request], received: datetime) -> list[Answer]:
        """Answers in the order of `requests`, by whoever the roles say for each entity.

        Raises:
            As `begin` does; NotFoundError, InvalidRequestError, ModelFailedError;
            FeaturesUnavailableError where the spec says refuse.

        """
        answered = asyncio.get_running_loop().create_future()

        def done(found: Waiting) -> None:
            if not answered.done():  # who asked has gone
                answered.set_result(found)

        self.begin(requests, received, done)
        found: Waiting = await answered
        if found.error is not None:
            raise found.error
        return found.answers

    def begin(
        self, requests: Sequence[Request], received: datetime, done: Callable[[Waiting], None]
    ) -> None:
        """Have `requests` answered together with what else comes in this tick of the loop.

        Raises:
            NoModelError, OverloadedError: `done` is told nothing.

        """
        if self._rows_inside and self._rows_inside + len(requests) > MOST_WAITING:
            OVERLOADED.inc()
            raise OverloadedError(f"{self._rows_inside} rows wait already: try again")
        if self.holder.current is None:
            raise NoModelError(self.holder.state)
        size = len(requests)
        waiting = Waiting(requests, received, done, [None] * size, received, received.isoformat())
        self._rows_inside += size
        if size > JOINED:
            self._keep(asyncio.get_running_loop().create_task(self._answer([waiting])))
            return
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._tick)

    async def ended(self) -> None:
        """Wait for what is under way, shadows included."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _tick(self) -> None:
        found, self._waiting = self._waiting, []
        for at in range(0, len(found), JOINED):  # more at once would hold up the loop
            part = self._answer(found[at : at + JOINED])
            self._keep(asyncio.get_running_loop().create_task(part))

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, found: list[Waiting]) -> None:
        roles = self.holder.roles
        try:
            await self._score_all(roles, found)
        except Exception as exc:  # noqa: BLE001  (nobody may be left without an answer)
            for waiting in found:
                waiting.error = waiting.error or exc
        for waiting in found:
            self._rows_inside -= len(waiting.requests)
            try:
                waiting.done(waiting)
            except Exception:  # the others' answers do not depend on it
                logger.exception("an answer could not be given")
        if roles.shadow is not None:
            self._begin_shadow(roles.shadow, found)

    async def _score_all(self, roles: Roles, found: list[Waiting]) -> None:
        asked: dict[Role, list[Item]] = {"challenger": [], "production": []}
        for waiting in found:
            for position, request in enumerate(waiting.requests):
                asked[roles.role_of(request.key)].append(Item(waiting, position, request))
        scored = list[Scored]()
        if asked["challenger"]:  # what it fails at is production's: nobody pays for a trial
            model = roles.model("challenger")
            mine, left = self._own(
                roles, asked["challenger"], await self._gather(model, asked["challenger"])
            )
            answers, failed = await self._scored("challenger", model, mine)
            scored.append(answers)
            asked["production"] += [*left, *failed]
        if asked["production"]:
            model = roles.model("production")
            ready = await self._gather(model, asked["production"])
            scored.append((await self._scored("production", model, ready))[0])
        await self._write(scored)

    def _own(
        self, roles: Roles, items: list[Item], ready: list[Ready]
    ) -> tuple[list[Ready], list[Item]]:
        """What the challenger has features for, and what it leaves to production."""
        challenger, production = roles.model("challenger"), roles.model("production")
        if challenger.features is not production.features:
            known = [one for one in ready if one[2] != "defaults"]
            if lacking := len(ready) - len(known):
                self._failed(challenger, "challenger", lacking)
            ready = known
        mine = {id(one[0]) for one in ready}
        left = [item for item in items if id(item) not in mine]
        for item in left:
            item.waiting.error = None
        return ready, left

    async def _scored(
        self, role: Role, model: LoadedModel, ready: list[Ready]
    ) -> tuple[Scored, list[Item]]:
        """Answers, not written yet; and what a challenger failed at."""
        if len(ready) > JOINED or role == "shadow":
            return await asyncio.to_thread(self._answers, role, model, ready)
        return self._answers(role, model, ready)

    def _answers(
        self, role: Role, model: LoadedModel, ready: list[Ready]
    ) -> tuple[Scored, list[Item]]:
        answers, failed = list[tuple[Item, Answer]](), list[Item]()
        ids = os.urandom(ID_BYTES * len(ready)).hex()
        for n, (one, found) in enumerate(zip(ready, _scores(model, ready), strict=True)):
            item, name = one[0], ids[2 * ID_BYTES * n : 2 * ID_BYTES * (n + 1)]
            try:
                answers.append((item, _answer(role, model, name, one, found)))
            except Exception as exc:  # noqa: BLE001  (a row's failure is its request's)
                if not isinstance(exc, InvalidRequestError):
                    self._failed(model, role, 1)
                if role == "challenger":
                    failed.append(item)
                else:
                    item.waiting.error = exc
        return (role, model, answers), failed

    def _failed(self, model: LoadedModel, role: Role, count: int) -> None:
        FAILURES.labels(self.spec.name, model.version, role).inc(count)

    async def _write(self, scored: list[Scored]) -> None:
        """Write down what is answered, all in one write; what failed meanwhile leaves no row."""
        kept = [
            (role, model, [one for one in answers if one[0].waiting.error is None])
            for role, model, answers in scored
        ]
        rows = [answer for _, _, answers in kept for _, answer in answers]
        if not rows:
            return
        far = len(rows) > JOINED
        logged = await asyncio.to_thread(self._log.write, rows) if far else self._log.write(rows)
        now = datetime.now(UTC)
        for role, model, answers in kept:
            for item, answer in answers:
                answer["logged"] = logged
                item.waiting.answers[item.position] = answer
            self._count(role, model, answers, now)

    def _count(
        self, role: Role, model: LoadedModel, answers: list[tuple[Item, Answer]], now: datetime
    ) -> None:
        tally = self._tallies.get((model.version, role))
        if tally is None:
            of = (self.spec.name, model.version, role)
            tally = self._tallies[model.version, role] = Tally(PREDICTIONS, PREDICTION_SECONDS, *of)
        since = {id(item.waiting): item.waiting.since for item, _ in answers}.values()
        tally.add(
            [answer["features_from"] for _, answer in answers],
            [(now - began).total_seconds() for began in since],
        )

    async def _gather(self, model: LoadedModel, items: Sequence[Item]) -> list[Ready]:
        """Every feature of the contract for each item; without those whose request failed."""
        names, asked = model.contract.features.keys(), list[Item]()
        for item in items:
            request = item.request
            if names <= request.given.keys():
                continue
            if request.key is None or (request.given and not request.merge):
                missing = ", ".join(name for name in names if name not in request.given)
                item.waiting.error = InvalidRequestError(
                    f"features: version {model.version} needs {missing}"
                )
            else:
                asked.append(item)
        stored, origin = dict[int, Any](), ""
        if asked:
            keys = [item.request.key or {} for item in asked]
            found, origin = await model.features.read(keys, [i.waiting.received for i in asked])
            stored = dict(zip(map(id, asked), found, strict=True))
        ready = list[Ready]()
        for item in items:
            if item.waiting.error is not None:
                continue
            try:
                row, from_where = self._complete(model, item.request, stored.get(id(item)), origin)
                ready.append((item, row, from_where))
            except (NotFoundError, FeaturesUnavailableError) as exc:
                item.waiting.error = exc
        return [one for one in ready if one[0].waiting.error is None]

    def _complete(
        self, model: LoadedModel, request: Request, stored: Any, origin: str
    ) -> tuple[Row, str]:
        """Fill what is null: a double and a text as in training, anything else as the spec says."""
        features, given = model.contract.features, request.given
        if stored and not given and None not in stored.values():
            return stored, origin
        if features.keys() <= given.keys():
            return {name: given[name] for name in features}, "request"
        if origin == "online":
            if stored is None:
                key = ", ".join(f"{name} {value}" for name, value in (request.key or {}).items())
                raise NotFoundError(f"{key} is not known to the feature store")
            if given:
                origin = "merged"
        values, row = {**(stored or {}), **given} if given else stored or {}, {}
        for name, kind in features.items():
            value = values.get(name)
            if value is None and name in values:
                value = NULLS.get(kind)
            if value is None:
                if self._refuse:
                    problem = model.features.problem or f"the stored {name} is null"
                    raise FeaturesUnavailableError(f"no features for a prediction: {problem}")
                value, origin = model.contract.defaults[name], "defaults"
            row[name] = value
        return row, origin

    def _begin_shadow(self, model: LoadedModel, found: Sequence[Waiting]) -> None:
        """Have the shadow score the same rows after they are answered; nobody waits for it."""
        size = sum(len(waiting.requests) for waiting in found)
        if self._rows_shadowed + size > MOST_SHADOWED:
            SHADOW_DROPPED.labels(self.spec.name).inc(size)
            return
        now = datetime.now(UTC)
        copies = [
            Waiting(w.requests, w.received, _nobody, [None] * len(w.requests), now, w.at)
            for w in found
            if w.error is None
        ]
        self._rows_shadowed += size
        self._keep(asyncio.get_running_loop().create_task(self._shadow(model, copies, size)))

    async def _shadow(self, model: LoadedModel, copies: list[Waiting], size: int) -> None:
        items = [Item(w, at, request) for w in copies for at, request in enumerate(w.requests)]
        try:
            found, _ = await self._scored("shadow", model, await self._gather(model, items))
            await self._write([found])
        except Exception:
            logger.exception("%s: the shadow failed", self.spec.name)
        finally:
            self._rows_shadowed -= size


def _nobody(_: Waiting) -> None:
    """A shadow's answers are told to nobody."""


def _scores(model: LoadedModel, ready: Sequence[Ready]) -> list[float | Exception]:
    """Score all at once; where that fails one by one, so that a row fails alone.

    Rounded as they are answered; what is no score stays what it is.
    """
    if not ready:
        return []
    try:
        found = score(model.session, model.contract, [row for _, row, _ in ready])
        return [rounded_one(each, model.contract.threshold) for each in found]
    except Exception as exc:  # noqa: BLE001  (onnxruntime's own, among others)
        if len(ready) == 1:
            return [exc]
        return [each for one in ready for each in _scores(model, [one])]


def _answer(
    role: Role, model: LoadedModel, name: str, ready: Ready, found: float | Exception
) -> Answer:
    """name: of the answer. found: rounded, as the threshold is compared with it; or an error."""
    (item, row, origin), contract = ready, model.contract
    if isinstance(found, Exception):
        raise found
    if what := wrong(contract, found):
        error = InvalidRequestError if origin in GIVEN else ModelFailedError
        raise error(f"features: version {model.version} scores them {found}, {what}")
    key, at, threshold = item.request.key, item.waiting.at, contract.threshold
    member = row[contract.population.feature]
    return {
        "request_id": name,
        "model": contract.model,
        "version": model.version,
        "role": role,
        "received": at,
        "as_of": at,
        "entity": None if key is None else entity_text(key),
        "features": row,
        "features_from": origin,
        "probability": None if threshold is None else found,
        "prediction": found if threshold is None else 1.0 if found >= threshold else 0.0,
        "in_population": not isinstance(member, str) and 0 <= member < contract.population.below,
    }
