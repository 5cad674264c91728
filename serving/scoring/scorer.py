"""The scorer behind every protocol: it completes features, scores, logs and answers.

A micro-batch has the requests that arrived while the one before was at work. They share a look-up,
a matrix per version and a write to the log. A request of many rows is a batch by itself. All runs
on one event loop.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from serving.errors import NoModelError, OverloadedError
from serving.metrics import OVERLOADED, SHADOW_DROPPED
from serving.prediction_log.append_log import AppendLog
from serving.program_log import REQUEST_ID
from serving.scoring.completion import complete
from serving.scoring.matrix import score_rows
from serving.scoring.record import record
from serving.scoring.rows import (
    MICRO_BATCH,
    Answer,
    AnswersOrError,
    Line,
    ReceivedRow,
    Request,
    Result,
    Row,
)
from serving.versions.loaded import LoadedVersions
from serving.versions.model import LoadedModel
from serving.versions.roles import Role, Roles

LOOP_ITERATIONS = 3
"""Turns of the event loop to wait, so that a client just answered joins the next batch."""
MAX_REQUESTS = 256
"""Requests for one model that may be under way at once."""
MAX_ROWS_UNDER_WAY = 20_000
"""Rows of these requests."""
MAX_SHADOW_ROWS = 1_000
"""Rows that may wait for the shadow; it skips further ones."""
logger = logging.getLogger(__name__)


class Scorer:
    """One model's queue, and the way of a micro-batch through it."""

    def __init__(self, versions: LoadedVersions, log: AppendLog) -> None:
        self._versions = versions
        self._log = log
        self._waiting: list[tuple[Request, asyncio.Future[AnswersOrError]]] = []
        self._is_answering = False
        self._request_count = 0
        self._row_count = 0
        self._shadow_row_count = 0
        self._tasks = set[asyncio.Task[None]]()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request from before its body is read until it is answered.

        Raises:
            OverloadedError: Too many requests are under way.
            NoModelError: No version can answer.

        """
        if self._request_count >= MAX_REQUESTS:
            raise self._overload()
        problem = self._versions.problem
        if problem is not None:
            raise NoModelError(problem)
        self._request_count += 1
        try:
            yield
        finally:
            self._request_count -= 1

    def _overload(self) -> OverloadedError:
        OVERLOADED.inc()
        waiting = f"{self._request_count} requests ({self._row_count} rows)"
        return OverloadedError(f"{waiting} wait already: try again")

    async def predict(self, rows: Sequence[Row], received: datetime) -> list[Answer]:
        """Answer the rows of one request.

        Args:
            rows: Rows of the request.
            received: When the request arrived (aware UTC). Features that depend on the clock are
                of this time.

        Returns:
            Answers in the order of the rows.

        Raises:
            GyreError: One of the rows has no prediction; then none of them has.

        """
        if self._row_count > 0 and self._row_count + len(rows) > MAX_ROWS_UNDER_WAY:
            raise self._overload()
        request = Request(_received_rows(rows, received), received)
        self._row_count += len(rows)
        try:
            outcome = await self._outcome(request)
        finally:
            self._row_count -= len(rows)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def score(self, row: Row, received: datetime) -> tuple[LoadedModel, Line]:
        """Score a row as `predict` does, but log and count nothing.

        Args:
            row: Row of a request.
            received: When the request arrived (aware UTC).

        Returns:
            The version that scored the row, and the line that a log would have.

        Raises:
            GyreError: The row has no prediction.

        """
        roles = self._versions.roles
        rows = _received_rows([row], received)
        (result,), _ = await self._results(roles, rows)
        if result.error is not None or result.line is None:
            raise result.error or NoModelError(self._versions.state)
        return roles.by_name()[result.line["role"]], result.line

    async def wait_for_answers(self) -> None:
        """Wait until all tasks that have begun are done."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _outcome(self, request: Request) -> AnswersOrError:
        if len(request.rows) > MICRO_BATCH:
            (outcome,) = await self._answer([request])
            return outcome
        if self._is_answering:
            answered = asyncio.Future[AnswersOrError]()
            self._waiting.append((request, answered))
            return await answered
        # Nobody waits: no task and no future are needed.
        self._is_answering = True
        try:
            (outcome,) = await self._answer([request])
        finally:
            if self._waiting:
                self._start(self._work_off())
            else:
                self._is_answering = False
        return outcome

    async def _work_off(self) -> None:
        """Answer the requests that wait, a micro-batch at a time."""
        while self._waiting:
            batch = self._waiting[:MICRO_BATCH]
            del self._waiting[:MICRO_BATCH]
            outcomes = await self._answer([request for request, _ in batch])
            for (_, answered), outcome in zip(batch, outcomes, strict=True):
                if not answered.done():  # its client may have gone
                    answered.set_result(outcome)
            if len(batch) > 1:
                # These answers are written first, and what their clients ask next joins the
                # requests that wait: else two groups take turns, in batches of half the size.
                for _ in range(LOOP_ITERATIONS):
                    await asyncio.sleep(0)
        self._is_answering = False

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, requests: Sequence[Request]) -> list[AnswersOrError]:
        """Return the outcome of each request. Never raises."""
        roles = self._versions.roles
        rows: list[ReceivedRow] = []
        slices = []
        for request in requests:
            start = len(rows)
            rows += request.rows
            slices.append(slice(start, len(rows)))
        try:
            results, trial_failures = await self._results(roles, rows)
            results_by_request = [results[part] for part in slices]
            outcomes = await record(
                self._log, requests, results_by_request, trial_failures
            )
        except Exception as exc:  # noqa: BLE001  (whatever it is, it is the answer)
            return [exc] * len(requests)
        if roles.shadow is not None:
            answered_rows = [
                row
                for request, outcome in zip(requests, outcomes, strict=True)
                if not isinstance(outcome, Exception)
                for row in request.rows
            ]
            self._start(self._shadow(roles.shadow, answered_rows))
        return outcomes

    async def _results(
        self, roles: Roles, rows: Sequence[ReceivedRow]
    ) -> tuple[list[Result], list[Line]]:
        """Score each row by the version that answers it.

        Returns:
            The results, and the lines of rows that the challenger failed: production answers them.

        """
        if roles.production is None:
            raise NoModelError(self._versions.state)
        if roles.challenger is None:
            return await self._score("production", roles.production, rows), []
        # By position: a proxy may give two requests one id.
        trial_positions = [
            position
            for position, row in enumerate(rows)
            if not row.row.is_pinned and roles.asks_challenger(row.row.key)
        ]
        trial_rows = [rows[position] for position in trial_positions]
        trials = await self._score("challenger", roles.challenger, trial_rows)
        results = {}
        failures = []
        for position, trial in zip(trial_positions, trials, strict=True):
            if trial.error is None:
                results[position] = trial
            elif trial.line:
                failures.append(trial.line)
        positions = range(len(rows))
        open_positions = [position for position in positions if position not in results]
        open_rows = [rows[position] for position in open_positions]
        answers = await self._score("production", roles.production, open_rows)
        results.update(zip(open_positions, answers, strict=True))
        return [results[position] for position in positions], failures

    async def _score(
        self, role: Role, model: LoadedModel, rows: Sequence[ReceivedRow]
    ) -> list[Result]:
        refuse = self._versions.spec.serving.missing_features == "refuse"
        if role == "challenger" and model.features is not self._versions.features:
            refuse = True  # production may know what is missing there
        features = await complete(model, rows, refuse=refuse)
        is_long = len(rows) > MICRO_BATCH or role == "shadow"
        if not is_long and model.session.thread is None:
            return score_rows(role, model, rows, features)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            model.session.thread, score_rows, role, model, rows, features
        )

    async def _shadow(self, model: LoadedModel, rows: Sequence[ReceivedRow]) -> None:
        """Score and log rows once more; nobody waits for it."""
        if self._shadow_row_count + len(rows) > MAX_SHADOW_ROWS:
            SHADOW_DROPPED.labels(self._versions.spec.name).inc(len(rows))
            return
        self._shadow_row_count += len(rows)
        try:
            now = datetime.now(UTC)
            results = await self._score("shadow", model, rows)
            requests = [Request([row], now) for row in rows]
            await record(self._log, requests, [[result] for result in results], ())
        except Exception:
            logger.exception("%s: the shadow failed", self._versions.spec.name)
        finally:
            self._shadow_row_count -= len(rows)


def _received_rows(rows: Sequence[Row], received: datetime) -> list[ReceivedRow]:
    """Give rows their ids: the same ids where a proxy sends a request again."""
    request_id = REQUEST_ID.get()
    return [
        ReceivedRow(row, f"{request_id}-{position}", received)
        for position, row in enumerate(rows)
    ]
