"""The entry of a worker's process, which does not import `__main__`."""

from starlette.types import ASGIApp

from core.settings import Settings
from serving.program_log import log_to_stdout


def worker(settings: Settings) -> ASGIApp:
    """Return the application of a worker, with the settings that the server started with."""
    from serving.app import create_app  # noqa: PLC0415  (the parent process does without it)

    log_to_stdout()
    return create_app(settings)
