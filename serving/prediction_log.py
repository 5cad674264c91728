"""What was answered, and what came true: append-only files of JSON lines.

One process writes `predictions-<pid>-<start>-<random>.jsonl` and `feedback-….jsonl` (`start`:
microseconds since 1970; no other replica, ever, has the name) in `GYRE_HOME/serving/log`. A line of
predictions, all times ISO 8601 UTC:
    request_id, model, version; role: the alias it answered as; received: when the request arrived;
    as_of: the moment its features are asked for; entity: as core.spec.entity_text has it (null:
    features alone were given); request_data: beside it; features: as the model got them (or null);
    features_from: request | online | partly | merged | cache | defaults; probability: 6 digits
    (null: a number is predicted); prediction: 0.0 | 1.0, or the number; of many classes the
    position of the most probable one, probability: its own, and probabilities: of each;
    in_population: whether the label is defined for this row
A line of feedback: request_id, actual (a number, or a class's name), received.

Every line is handed to the kernel in one write before its answer is given, and flushed to disk
once a second: SIGKILL loses no acknowledged row, a power cut at most the last second.
A file is ended after 64 MB or 10 minutes (8 s where serving/inbox.py sends it on; once a second
where somebody touches `.rotate`), closed once it is on disk, and never written again. The writer
holds a lock (`flock`) on its open file: whoever gets it has a closed file, also after a SIGKILL. In
an open file, every line that ends in a newline is final. A line that is no JSON object was torn by
a full disk or a power cut.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from serving.metrics import LOG_FAILURES, LOG_LAG

MAX_BYTES = 64 * 1024 * 1024
MAX_SECONDS = 600.0
ROTATE, ASKED_SECONDS = ".rotate", 2.0
"""Who touches this file in the folder has the files that are written ended."""
logger = logging.getLogger(__name__)


class AppendLog:
    """One kind of rows, written by this process alone. Nothing here raises."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        max_seconds: float = MAX_SECONDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """max_seconds, max_bytes: of a file, which is ended then."""
        self.kind, self._folder = kind, folder
        self._max_seconds, self._max_bytes = max_seconds, max_bytes
        self._files: list[
            int
        ] = []  # the last takes rows; others are to be synced and closed
        self._writing, self._flushing = threading.Lock(), threading.Lock()
        self._size, self._opened, self._torn = 0, 0.0, False
        self._unsynced: float | None = (
            None  # since when rows wait to be on disk, monotonic
        )
        self.problem: str | None = None
        # There from the start: Prometheus sees no increase from nothing.
        LOG_FAILURES.labels(kind)

    def open(self) -> None:
        """Begin a file. If that fails, the one at hand takes rows as before."""
        self._size, self._opened = 0, time.monotonic()
        name, file = (
            f"{self.kind}-{os.getpid()}-{time.time_ns() // 1000}-{os.urandom(4).hex()}",
            -1,
        )
        hidden = self._folder / f".{name}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Locked before it has its name: a file that can be found is never taken for closed.
            file = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            hidden.rename(self._folder / f"{name}.jsonl")
        except OSError as exc:
            if file != -1:
                os.close(file)
            self._failed(exc)
        else:
            self._files.append(file)
            self._torn = False

    def write(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Hand all rows to the kernel in one write; False if that failed."""
        lines = b"".join([to_json(row, inf_nan_mode="null") + b"\n" for row in rows])
        with self._writing:
            try:
                self._append(b"\n" + lines if self._torn else lines)
            except OSError as exc:
                self._failed(exc)
                LOG_FAILURES.labels(self.kind).inc(len(rows))
                return False
            self.problem = None
            if self._size >= self._max_bytes:
                self.open()
        return True

    def _append(self, data: bytes) -> None:
        if not self._files:
            raise OSError("no file is open")
        self._unsynced = self._unsynced or time.monotonic()
        written = os.write(self._files[-1], data)
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            raise OSError("the disk took only a part of the line")

    def flush(self) -> None:
        """Once a second: to disk, and on to a new file where this one is old or did not open."""
        with self._flushing:
            with self._writing:
                age = time.monotonic() - self._opened
                is_old = self._size and (age > self._max_seconds or self._is_asked())
                if is_old or not self._files:
                    self.open()
                files, since, self._unsynced = [*self._files], self._unsynced, None
            # A slow disk does not hold up the answers.
            self._sync(files, ended=len(files) - 1)
        LOG_LAG.labels(self.kind).set(0 if since is None else time.monotonic() - since)

    def _is_asked(self) -> bool:
        with suppress(OSError):
            return time.time() - (self._folder / ROTATE).stat().st_mtime < ASKED_SECONDS
        return False

    def close(self) -> None:
        with self._flushing, self._writing:
            self._sync([*self._files], ended=len(self._files))

    def _sync(self, files: Sequence[int], ended: int) -> None:
        """Have files on disk, and close the first `ended` of them."""
        for position, file in enumerate(files):
            try:
                os.fsync(file)
            except OSError as exc:
                self._failed(exc)
            if position < ended:
                self._files.remove(file)
                os.close(file)

    def _failed(self, exc: OSError) -> None:
        if self.problem is None:
            logger.error("%s log: %s", self.kind, exc)
            self.problem = str(exc)
