"""What was answered, and what came true: append-only files of JSON lines.

Folder `GYRE_HOME/serving/log`. One process writes `predictions-<pid>-<start>.jsonl` and
`feedback-<pid>-<start>.jsonl` (`start`: microseconds since 1970, UTC, when the file was opened).

A prediction, one line each:
    request_id    str, unique
    model         str, registered name
    version       str, the version that scored
    role          str, the alias it answered as: production
    received      str, ISO 8601 UTC, when the request arrived
    as_of         str, ISO 8601 UTC, the moment its features are asked for
    entity        int | str | null, the entity's key (null: features alone were given)
    features      object, every feature as the model got it, in its order (null: not a number)
    features_from str: request | online | merged | cache | defaults
    probability   float, rounded to 6 digits
    prediction    0.0 | 1.0
    in_population bool, whether the label is defined for this row
A feedback: request_id, actual (0.0 | 1.0), received.

Every line is handed to the kernel in one write before its answer is given, and flushed to disk
once a second: SIGKILL loses no acknowledged row, a power cut at most the last second.
A file is closed after 64 MB or 10 minutes and never written again. The writer holds a lock
(`flock`) on its open file: whoever gets that lock has a closed file, also after a SIGKILL. In an
open file, every line that ends in a newline is final. A line that is no JSON object (torn by a
full disk or a power cut) is skipped and counted by `read_rows`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from serving.errors import FeedbackConflictError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from serving.metrics import Metrics

MAX_BYTES = 64 * 1024 * 1024
MAX_SECONDS = 600.0
logger = logging.getLogger(__name__)


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows of one file, and how many torn lines were skipped."""
    rows, torn = [], 0
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line) if line else None
        except ValueError:
            row = line
        if isinstance(row, dict):
            rows.append(row)
        elif line:
            torn += 1
    return rows, torn


class AppendLog:
    """One kind of rows, written by this process alone. Writing never raises."""

    def __init__(
        self, folder: Path, kind: str, metrics: Metrics, max_bytes: int = MAX_BYTES
    ) -> None:
        self._folder, self._kind, self._max_bytes = folder, kind, max_bytes
        self._failures = metrics.log_failures.labels(kind)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._file = -1
        self._size, self._opened, self._torn = 0, 0.0, False
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._flush_forever, name=kind, daemon=True)

    def start(self) -> None:
        with self._lock:
            self._open()
        self._thread.start()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Hand all rows to the kernel in one write; False if that failed."""
        lines = b"".join([to_json(row, inf_nan_mode="null") + b"\n" for row in rows])
        with self._lock:
            done = self._append(b"\n" + lines if self._torn else lines)
        if not done:
            self._failures.inc(len(rows))
        return done

    def _append(self, data: bytes) -> bool:
        if self._file < 0:
            return False
        try:
            written = os.write(self._file, data)
        except OSError as exc:
            return self._fail(exc)
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            return self._fail(OSError("the disk took only a part of the line"))
        self.problem = None
        if self._size >= self._max_bytes:
            self._open()
        return True

    def _open(self) -> None:
        """Close the file at hand and begin another."""
        self._close()
        name = f"{self._kind}-{os.getpid()}-{time.time_ns() // 1000}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._folder / name, flags, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._fail(exc)
        self._size, self._torn, self._opened = 0, False, time.monotonic()

    def _fail(self, exc: OSError) -> bool:
        if self.problem is None:
            logger.error("%s log: %s", self._kind, exc)
        self.problem = str(exc)
        return False

    def _flush_forever(self) -> None:
        while not self._stop.wait(1.0):
            with self._lock:
                old = self._size and time.monotonic() - self._opened > MAX_SECONDS
                if self._file < 0 or old:
                    self._open()
                file = os.dup(self._file) if self._file >= 0 else -1
            if file >= 0:  # outside the lock: a slow disk must not hold up the answers
                self._sync(file)

    def _sync(self, file: int) -> None:
        try:
            os.fsync(file)
        except OSError as exc:
            self._fail(exc)
        finally:
            os.close(file)

    def _close(self) -> None:
        if self._file >= 0:
            self._sync(self._file)
            self._file = -1

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        with self._lock:
            self._close()


class FeedbackLog(AppendLog):
    """Outcomes by request id, one `actual` each, remembered from the files at start.

    A request id is not checked against the predictions: its row may be in another worker's file,
    or moved already. What matches no prediction is seen when the two are joined.
    """

    def __init__(self, folder: Path, metrics: Metrics) -> None:
        super().__init__(folder, "feedback", metrics)
        self._metrics, self._actuals = metrics, dict[str, float]()

    def start(self) -> None:
        for path in sorted(self._folder.glob("feedback-*.jsonl")):
            rows, torn = read_rows(path)
            self._metrics.torn_lines.inc(torn)
            self._actuals.update((row["request_id"], row["actual"]) for row in rows)
        super().start()

    def record(self, outcomes: Mapping[str, float], received: datetime) -> bool:
        """Write what is new; True if all of it is on file.

        Raises:
            FeedbackConflictError: another actual is known for one of them; nothing is written.

        """
        for request_id, actual in outcomes.items():
            known = self._actuals.get(request_id, actual)
            if known != actual:
                raise FeedbackConflictError(
                    f"request_id {request_id}: actual {known} is on file, {actual} was sent"
                )
        new = {key: actual for key, actual in outcomes.items() if key not in self._actuals}
        at = received.isoformat()
        rows = [{"request_id": k, "actual": actual, "received": at} for k, actual in new.items()]
        if rows and not self.write(rows):
            return False
        self._actuals.update(new)
        return True
