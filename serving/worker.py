"""A worker's process, which does not import `__main__`: its logs and its application."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from starlette.types import ASGIApp

from core.settings import Settings

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")


class JsonLines(logging.Formatter):
    """One object a line: text of clients cannot begin one of its own."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat()
        line = {"time": at, "level": record.levelname, "logger": record.name}
        line["process"] = str(record.process)
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stdout() -> None:
    output = logging.StreamHandler(sys.stdout)
    output.setFormatter(JsonLines())
    logging.basicConfig(handlers=[output], level=logging.WARNING)
    for name in ("serving", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)


def worker(settings: Settings) -> ASGIApp:
    """Return the application, with the settings of the server's start, whenever it starts."""
    from serving.app import create_app  # noqa: PLC0415  (the parent does without)

    log_to_stdout()
    return create_app(settings)
