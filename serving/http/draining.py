"""Answers go on for a while after SIGTERM, and ask clients to connect to another replica.

A balancer learns of the end of a replica later than the replica does. A client that keeps a connection
may send a request on it in the moment in which the server closes it.
"""

import asyncio
import signal
from types import FrameType


class Draining:
    """Puts off the end that the server has set for SIGTERM."""

    def __init__(self, seconds: int) -> None:
        """Do nothing before `prepare`.

        Args:
            seconds: From SIGTERM to the server's own end.

        """
        self.headers: list[tuple[bytes, bytes]] = []
        """Of each answer."""
        self.seconds = seconds
        """0: the server ends at once."""

    def prepare(self) -> None:
        """Take the place of the server's handler of SIGTERM; called on the event loop."""
        loop = asyncio.get_running_loop()
        end = signal.getsignal(signal.SIGTERM)
        if not self.seconds or not callable(end):
            return

        def begin(number: int, frame: FrameType | None) -> None:
            self.headers = [(b"connection", b"close")]
            loop.call_soon_threadsafe(loop.call_later, self.seconds, end, number, frame)

        signal.signal(signal.SIGTERM, begin)
