"""`python -m serving`: one worker on the loopback address, until SIGTERM."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

import uvicorn

from serving.app import create_app
from stack.errors import GyreError
from stack.settings import LOOPBACK, load_settings
from stack.spec import load_specs


class JsonLines(logging.Formatter):
    """One JSON object a record; text of clients cannot begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat()
        line = {"time": at, "level": record.levelname, "logger": record.name}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonLines}},
    "handlers": {
        "out": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}
    },
    "root": {"handlers": ["out"], "level": "WARNING"},
    "loggers": {"serving": {"level": "INFO"}, "uvicorn": {"level": "INFO"}},
}


def main() -> int:
    try:
        settings = load_settings()
        app = create_app(settings, load_specs())
    except GyreError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    uvicorn.run(
        app,
        host=LOOPBACK,
        port=settings.serving_port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_config=LOGGING,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
