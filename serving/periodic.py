"""Work that is done again and again, in a thread of its own."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def every(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Call `work` now and every `seconds` until the end; what it raises is logged."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.is_set():
            try:
                work()
            except Exception:
                logger.exception("%s failed", work)
            stopped.wait(seconds)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(10)
