"""A worker's process: made with the settings of the server's start, whenever it starts.

Of its own, because `__main__` is not imported where a process is spawned.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from serving.json_logs import log_to_stdout

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from stack.settings import Settings


def worker(settings: Settings, parent: int) -> ASGIApp:
    """parent: the process that asked for it; the application itself ends when it has another."""
    from serving.app import create_app  # noqa: PLC0415  (the parent does without)

    log_to_stdout()
    app = create_app(settings)
    if os.getppid() != parent:
        raise SystemExit(f"the server (process {parent}) ended while this worker started")
    return app
