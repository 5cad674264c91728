"""Closed files of the log are sent to `GYRE_DATA_URL/inbox/<host name>/`.

Files of killed processes in the same folder are sent, too. A file that is refused stays, and is
sent again.
"""

import asyncio
import fcntl
import logging
import socket
from contextlib import suppress
from pathlib import Path

from serving.metrics import INBOX_FAILURES

LAST_SECONDS = 3.0
"""Deadline of files that are sent at the end; the next worker in the folder sends the rest."""
logger = logging.getLogger(__name__)


class Inbox:
    """The place where the files of a log go.

    Args:
        data_url: `GYRE_DATA_URL`. It is not asked before the first file.
        folder: Folder of the log.

    """

    def __init__(self, data_url: str, folder: Path) -> None:
        from obstore.store import from_url  # noqa: PLC0415  (0.1 s, and only of teams)

        url = f"{data_url}/inbox/{socket.gethostname()}"
        # The next call tries again.
        self._store = from_url(url, retry_config={"max_retries": 0})
        self._folder = folder
        self._is_refusing = False

    async def send(self) -> None:
        """Send every closed file, until one is refused. It runs on the event loop, to be cancelled."""
        paths = await asyncio.to_thread(lambda: sorted(self._folder.glob("*.jsonl")))
        for path in paths:
            # Locked: it is open, or another worker sends it. Missing: another worker has sent it.
            with suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_empty = path.stat().st_size == 0
                if not is_empty and not await self._is_taken(path):
                    return
                path.unlink()

    async def send_last(self) -> None:
        """Send closed files, for at most LAST_SECONDS."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.send(), LAST_SECONDS)

    async def _is_taken(self, path: Path) -> bool:
        try:
            await self._store.put_async(path.name, path)
        except Exception:
            INBOX_FAILURES.inc()
            if not self._is_refusing:
                logger.exception(
                    "GYRE_DATA_URL takes no files of the log: they stay in GYRE_HOME"
                )
            self._is_refusing = True
            return False
        self._is_refusing = False
        return True
