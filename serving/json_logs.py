"""Structured logs: one JSON object a line on stdout."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The `x-request-id` of the request under way (serving/middleware.py); empty outside of one."""


class JsonLines(logging.Formatter):
    """One JSON object a record; text of clients cannot begin a line of its own."""

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
