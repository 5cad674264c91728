"""A worker's process, made with the settings of the server's start, whenever it starts.

Of its own, because `__main__` is not imported where a process is spawned.
"""

from starlette.types import ASGIApp

from serving.json_logs import log_to_stdout
from stack.settings import Settings


def worker(settings: Settings) -> ASGIApp:
    from serving.app import create_app  # noqa: PLC0415  (the parent does without)

    log_to_stdout()
    return create_app(settings)
