"""`python -m serving`: one worker on the loopback address, until SIGTERM."""

import json
import logging
import sys
from datetime import UTC, datetime

import uvicorn

from serving.app import create_app
from serving.connection import BoundedConnection
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


def log_to_stdout() -> None:
    output = logging.StreamHandler(sys.stdout)
    output.setFormatter(JsonLines())
    logging.basicConfig(handlers=[output], level=logging.WARNING)
    for name in ("serving", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)


def main() -> int:
    try:
        settings = load_settings()
        app = create_app(settings, load_specs())
    except GyreError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    log_to_stdout()
    uvicorn.run(
        app, host=LOOPBACK, port=settings.serving_port, loop="uvloop", http=BoundedConnection,
        ws="none", access_log=False, log_config=None, server_header=False,
        timeout_graceful_shutdown=10,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
