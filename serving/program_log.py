"""Log lines of the server and its workers: a JSON object each."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")


class JsonLines(logging.Formatter):
    """Writes a record as one line, so that a client's text cannot begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat()
        line = {"time": at, "level": record.levelname, "logger": record.name}
        line["process"] = str(record.process)
        request_id = REQUEST_ID.get()
        if request_id:
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
