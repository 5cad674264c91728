"""Closed files of the log leave their replica, to `GYRE_DATA_URL/inbox/<host name>/`.

Those of killed processes in the same folder too. What is not taken stays, and is sent again.
"""

import asyncio
import fcntl
import logging
import socket
from contextlib import suppress
from pathlib import Path

from serving.metrics import INBOX_FAILURES

CLOSE_SECONDS = 8.0
"""Age at which a file is closed, to be there within 10 s: both are looked after once a second."""
LAST_SECONDS = 3.0
"""For what is sent at the end; whoever starts in the folder sends the rest."""
logger = logging.getLogger(__name__)


class Inbox:
    def __init__(self, data_url: str, folder: Path) -> None:
        """folder: the log's. S3 is not asked yet."""
        from obstore.store import from_url  # noqa: PLC0415  (0.1 s, and only of teams)

        url = f"{data_url}/inbox/{socket.gethostname()}"
        # The next call tries again.
        self._store = from_url(url, retry_config={"max_retries": 0})
        self._folder, self._refused = folder, False

    async def send(self) -> None:
        """Send every closed file, until one is refused. On the event loop, to be given up."""
        for file in await asyncio.to_thread(
            lambda: sorted(self._folder.glob("*.jsonl"))
        ):
            # Locked: it is written, or another worker sends it. Missing: another has.
            with (
                suppress(BlockingIOError, FileNotFoundError),
                file.open("rb") as opened,
            ):
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if file.stat().st_size and not await self._is_taken(file):
                    return
                file.unlink()

    async def send_last(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.send(), LAST_SECONDS)

    async def _is_taken(self, file: Path) -> bool:
        try:
            await self._store.put_async(file.name, file)
        except Exception:
            INBOX_FAILURES.inc()
            if not self._refused:
                logger.exception(
                    "GYRE_DATA_URL takes no files of the log: they stay here"
                )
            self._refused = True
            return False
        self._refused = False
        return True
