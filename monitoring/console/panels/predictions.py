"""Questions about predictions: one at a time, each in a process of its own.

A few may wait. Of more, a person is told at once that the console is busy.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from core.errors import MonitoringError
from core.spec import entity_of, entity_text, load_spec
from monitoring.console.cached_reader import CachedReader

LIMIT_SECONDS = 60
FRESH_SECONDS = 30
MOST_ANSWERS = 16
SEARCH = (sys.executable, "-m", "monitoring.console.panels.prediction_search")
MOST_WAITING = 4
"""Questions that are asked or wait; each takes a second or more."""
_searching = threading.Lock()
_places = threading.BoundedSemaphore(MOST_WAITING)


def question_of(model: str, query: Mapping[str, str]) -> tuple[str, str]:
    """Return the field that a person asks for, and its text.

    Args:
        model: Name of the model.
        query: Parameters of the page; `request_id` or `entity`, or neither: the newest of the model.

    Returns:
        request_id, entity or model, and the value, as `prediction_search.search` takes them.

    """
    for field in ("request_id", "entity"):
        text = query.get(field, "").strip()
        if text:
            return field, text
    return "model", model


@lru_cache(MOST_ANSWERS)
def answer_reader(model: str, field: str, text: str) -> CachedReader[dict[str, Any]]:
    """Return the reader of an answer of `prediction_search.search`, or of `{"problem": text}`."""
    ask = partial(_ask, model, field, text)
    return CachedReader(ask, FRESH_SECONDS, keeps=True)


def _ask(model: str, field: str, text: str) -> dict[str, Any]:
    if field == "entity":
        key = load_spec(model).entity_key
        try:
            text = entity_text(entity_of(key, text))
        except (RecursionError, TypeError, ValueError):
            columns = ", ".join(f"{name} ({kind})" for name, kind in key.items())
            return {"problem": f"expected {columns}, found {text:.100}"}
    if not _places.acquire(blocking=False):
        raise MonitoringError("other searches go on: try again in a few seconds")
    try:
        return _search([model, field, text])
    finally:
        _places.release()


def _search(question: Sequence[str]) -> dict[str, Any]:
    with _searching:
        try:
            search = subprocess.run(
                SEARCH,
                input=json.dumps(question).encode(),
                capture_output=True,
                check=True,
                timeout=LIMIT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return {
                "problem": f"the prediction log was not read within {LIMIT_SECONDS} s: try again later"
            }
        except subprocess.CalledProcessError as exc:
            if exc.returncode < 0:
                return {
                    "problem": "the process that read the log was killed: is there memory for it?"
                }
            return {"problem": exc.stderr.decode().strip().rpartition("\n")[2]}
    answer: dict[str, Any] = json.loads(search.stdout)
    return answer
