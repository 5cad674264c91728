"""Lines of serving's log, as serving/prediction_log/append_log.py has them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.settings import Settings

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
FAILURE = {
    "features": {},
    "features_from": "",
    "probability": None,
    "prediction": None,
    "error": "ValueError: no tree",
}
"""What a row that the version failed has in place of an answer."""


def answer(request_id: str, received: datetime = NOON, **change: Any) -> dict[str, Any]:
    """Return a line of an answer, of model m, registered in 1970, and version 1 in production."""
    line = {
        "request_id": request_id,
        "model": "m",
        "version": "1",
        "created": 0,
        "role": "production",
        "received": received.isoformat(),
        "as_of": received.isoformat(),
        "entity": request_id,
        "features": {"orders": 1, "segment": "new"},
        "features_from": "online",
        "probability": 0.5,
        "prediction": 1.0,
        "in_population": True,
    }
    return line | change


def feedback(
    request_id: str, actual: float | str, received: datetime = NOON
) -> dict[str, Any]:
    """Return a line of what came true of a request."""
    return {
        "request_id": request_id,
        "actual": actual,
        "received": received.isoformat(),
    }


def write(
    settings: Settings, name: str, *lines: dict[str, Any] | str, end: str = "\n"
) -> Path:
    """Write a closed file of the log; a text is a line as it is."""
    folder = settings.home / "serving" / "log"
    folder.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path = folder / name
    path.write_text("\n".join(texts) + end)
    return path
