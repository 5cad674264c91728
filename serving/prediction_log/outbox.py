"""Rows of the prediction log are sent to the topic GYRE_PREDICTIONS_TOPIC, each at least once.

Each file of the log has a second name in `GYRE_HOME/serving/outbox/`, which stays until all of its
rows are on the topic; the monitor and the inbox remove its other name. One worker of a host sends
until it ends. It remembers in memory how far it is in each file: the next one begins every file anew.

Rows of an entity are on the topic in the order of requests that follow each other. A row is written
before its answer is given; so it is written before the next request is received. Files are merged by
`received`: whatever stands in a file before a row was received before the next request, too. A round
takes rows received before it listed the files: all rows before them are in these files.
"""

import heapq
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, BaseModel, ValidationError

from core.connectors.kafka import TopicWriter, kafka_errors
from core.files import is_closed
from core.settings import Settings
from serving.metrics import OUTBOX_BYTES, OUTBOX_FAILURES

BYTES_AT_ONCE = 8 * 1024 * 1024
"""Size of the rows that are in memory together; librdkafka has another copy."""
FILES_AT_ONCE = 128
"""Files that are open together: more than the 64 workers that a host may have."""
FLUSH_SECONDS = 1.0
"""How long the last rows may take at the end; the next worker in the folder sends the rest."""
RETRY_SECONDS = 10.0
"""Pause after a refusal, as what Kafka took beside it is sent again."""
logger = logging.getLogger(__name__)


class Row(BaseModel):
    """What a record needs of a row of the log: see append_log.py."""

    request_id: str
    received: AwareDatetime
    entity: str | None


@dataclass(frozen=True)
class Line:
    """A line of a file.

    Attributes:
        path: The file.
        end: Position behind the line.
        content: The line, without its newline.
        row: The row; None: the line is empty or malformed. The monitor counts malformed lines.
        received: When the row was received, in seconds since 1970; else that of the row before.

    """

    path: Path
    end: int
    content: bytes
    row: Row | None
    received: float


class Outbox:
    """The sender of a worker. Its methods block; nothing raises.

    Attributes:
        folder: Folder of the files that have unsent rows.

    """

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.home / "serving" / "outbox"
        self._settings = settings
        self._lock = FileLock(self.folder / "lock", timeout=0, thread_local=False)
        self._topic: TopicWriter | None = None
        self._offsets: dict[Path, int] = {}
        """File → position up to which Kafka has its rows."""
        self._round_lock = threading.Lock()
        self._is_ending = threading.Event()
        self._is_refused = False

    def send(self) -> None:
        """Send the rows that are in the log by now, unless another worker of the host sends."""
        with self._round_lock:
            try:
                self._lock.acquire()
                with kafka_errors():
                    self._send_rows()
            except Timeout:
                return
            except Exception as exc:  # noqa: BLE001  (whatever it is, the rows stay)
                self._topic = None
                self._report(exc)
                self._is_ending.wait(RETRY_SECONDS)

    def close(self) -> None:
        """Send the last rows, if Kafka takes them at once. No log may be open any more."""
        self._is_ending.set()
        if self._topic:
            self.send()

    def _send_rows(self) -> None:
        if self._topic is None:
            self._topic = TopicWriter(self._settings, self._settings.predictions_topic)
        until = time.time()
        has_more = True
        while has_more:
            has_more = self._send_part(self._topic, until)
        self._is_refused = False
        self._measure()

    def _send_part(self, topic: TopicWriter, until: float) -> bool:
        """Send rows received before `until`; remove files that are closed and sent.

        Returns:
            Whether there may be more rows.

        """
        paths = sorted(self.folder.glob("*.jsonl"), key=_started)
        if len(paths) > FILES_AT_ONCE:
            # A row that was received later may follow one of the files that are left for now.
            until = min(until, _started(paths[FILES_AT_ONCE]))
        del paths[FILES_AT_ONCE:]
        closed_paths = {path for path in paths if is_closed(path)}
        offsets = {path: self._offsets.get(path, 0) for path in paths}
        size = 0
        all_lines = [
            _lines(path, start=offsets[path], is_whole=path in closed_paths)
            for path in paths
        ]
        for line in heapq.merge(*all_lines, key=attrgetter("received")):
            if line.received >= until or size >= BYTES_AT_ONCE:
                break
            if line.row:
                topic.write(
                    line.row.request_id,
                    line.content,
                    group=line.row.entity or line.row.request_id,
                    time=line.row.received,
                )
            offsets[line.path] = line.end
            size += len(line.content)
        while not topic.is_flushed(FLUSH_SECONDS):
            self._report("Kafka: no answer")
            if self._is_ending.is_set():
                return False
        self._offsets = offsets
        for path in closed_paths:
            if offsets[path] == path.stat().st_size:
                path.unlink()
                del offsets[path]
        return size > 0

    def _report(self, reason: object) -> None:
        """Count a failure, and log the first one since Kafka took all rows."""
        OUTBOX_FAILURES.inc()
        self._measure()
        if not self._is_refused:
            logger.error(
                "%s takes no predictions: they stay in GYRE_HOME: %s",
                self._settings.predictions_topic,
                reason,
            )
        self._is_refused = True

    def _measure(self) -> None:
        sizes = [path.stat().st_size for path in self.folder.glob("*.jsonl")]
        OUTBOX_BYTES.set(sum(sizes) - sum(self._offsets.values()))


def _lines(path: Path, *, start: int, is_whole: bool) -> Iterator[Line]:
    """Bring a file to the disk; yield its final lines from a position on.

    A line that ends in a newline is final. In a closed file, which is whole, the rest is a line, too.
    """
    received = 0.0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size > start:
            os.fdatasync(file.fileno())
        end = file.seek(start)
        for content in file:
            end += len(content)
            if end > size or not (is_whole or content.endswith(b"\n")):
                return
            row = None
            with suppress(ValidationError):
                row = Row.model_validate_json(content)
                received = row.received.timestamp()
            yield Line(path, end, content.strip(), row, received)


def _started(path: Path) -> float:
    """Return when a file was begun, in seconds since 1970, as its name says."""
    return int(path.stem.split("-")[2]) / 1e6
