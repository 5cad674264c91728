"""A worker's process, which does not import `__main__`."""

from starlette.types import ASGIApp

from core.settings import Settings
from serving.logs import log_to_stdout


def worker(settings: Settings) -> ASGIApp:
    """Return the application, with the settings of the server's start, whenever it starts."""
    from serving.app import create_app  # noqa: PLC0415  (the parent does without)

    log_to_stdout()
    return create_app(settings)
