"""Results of requests are written into the prediction log, and counted."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from serving.metrics import FAILURES, PREDICTIONS, count, observe
from serving.prediction_log.append_log import AppendLog
from serving.scoring.rows import (
    MICRO_BATCH,
    Answer,
    AnswersOrError,
    Line,
    Request,
    Result,
)


async def record(
    log: AppendLog,
    requests: Sequence[Request],
    results_by_request: Sequence[Sequence[Result]],
    trial_failures: Sequence[Line],
) -> list[AnswersOrError]:
    """Log and count the results of requests.

    A request of which a row failed leaves no prediction, only the lines of failures.

    Args:
        log: The prediction log.
        requests: Requests that were scored.
        results_by_request: Results of the rows of each request.
        trial_failures: Lines of rows that the challenger failed.

    Returns:
        Answers of each request, or why it has none.

    """
    now = datetime.now(UTC)
    lines = list(trial_failures)
    outcomes: list[list[Line] | Exception] = []
    for request, results in zip(requests, results_by_request, strict=True):
        errors = [result.error for result in results if result.error]
        request_lines = [
            result.line
            for result in results
            if result.line is not None and (result.error or not errors)
        ]
        if request_lines:
            seconds = (now - request.received).total_seconds()
            request_lines[0]["seconds"] = seconds
            lines += request_lines
        outcomes.append(errors[0] if errors else request_lines)
    is_logged = await _log(log, lines)
    answers: list[AnswersOrError] = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            answers.append(outcome)
        else:
            answers.append([Answer(line, is_logged) for line in outcome])
    return answers


async def _log(log: AppendLog, lines: Sequence[Line]) -> bool:
    """Log and count lines; return whether they are on file."""
    if not lines:
        return True
    if len(lines) > MICRO_BATCH:
        is_logged = await asyncio.to_thread(log.write, lines)
    else:
        is_logged = log.write(lines)
    for line in lines:
        version_labels = (line["model"], line["version"], line["role"])
        if "error" in line:
            count(FAILURES, *version_labels)
        else:
            count(PREDICTIONS, *version_labels, line["features_from"])
        if "seconds" in line:
            observe(*version_labels, seconds=line["seconds"])
    return is_logged
