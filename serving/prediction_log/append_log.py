"""Logs of predictions and of feedback: append-only files of JSON lines.

One process writes `predictions-<pid>-<start>-<random>.jsonl` and `feedback-….jsonl` (`start`:
microseconds since 1970; the name is unique over all replicas) in `GYRE_HOME/serving/log`. A line of
predictions, all times ISO 8601 UTC:
    request_id, model, version; role: the alias it answered as; received: when the request arrived;
    created: when the model was registered (ms since 1970), as one that is registered again is another;
    as_of: the moment its features are asked for; entity: as core.spec.entity_text has it (null:
    features alone were given); request_data: beside it; features: as the model got them (or null);
    features_from: request | online | partly | cache | defaults; probability: 6 digits
    (null: a number is predicted); prediction: 0.0 | 1.0, or the number; of many classes the
    position of the most probable one, probability: its own, and probabilities: of each;
    in_population: whether the label is defined for this row;
    seconds: of a request's first row alone, from receipt of its body to the write of this line;
    error: one line of text, only in a row that the version failed. Such a row has neither
    prediction nor probability; its features are {} and features_from is "" where there were none.
A line of feedback: request_id, actual (a number, or a class's name), received.

A request can have several lines: of a shadow, of a challenger that failed, of production that
answered in its place. All have the request's id and differ in role and error. In the table
`predictions` the answered row keeps the id, which feedback names; a shadow's row has `/shadow`
behind it, and a row with an error `/ROLE/error` (monitoring/log/collect.py).

Every line is handed to the kernel before its answer is given, and flushed to disk once a second:
SIGKILL loses no acknowledged row, a power cut at most the last second. A file is ended after 8
seconds, closed once it is on disk, and never written again. The writer holds a lock (`flock`) on
its open file: whoever gets it has a closed file, also after a SIGKILL. In an open file, every line
that ends in a newline is final. Empty lines mean nothing: each write begins with a newline, which
ends a line that was torn by a full disk or a power cut. A torn line is no JSON object.

Where predictions go to a topic, a file has a second name, from the start: see outbox.py.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from serving.metrics import LOG_FAILURES, LOG_LAG

FILE_SECONDS = 8.0
"""Age at which a file is ended: looked after once a second, it is in the inbox within 10 s."""
ROWS_PER_WRITE = 64
"""Rows of a larger batch are written in parts: other writers wait for the kernel meanwhile."""
logger = logging.getLogger(__name__)


class AppendLog:
    """A log of one kind of rows, which this process alone writes. Any thread may write; nothing raises.

    Args:
        folder: Folder of the log's files.
        kind: Kind of the rows.
        outbox: Folder in which each file has a second name; None: it has one name alone.

    Attributes:
        problem: The first error since a write succeeded; None: there is none.

    """

    def __init__(self, folder: Path, kind: str, outbox: Path | None = None) -> None:
        self.kind = kind
        self.problem: str | None = None
        self._folder = folder
        self._outbox = outbox
        self._handle: int | None = None
        self._opened_at = 0.0
        self._flushed_at = time.monotonic()
        self._flush_lock = threading.Lock()
        # Set from the start: Prometheus sees no increase from nothing.
        LOG_FAILURES.labels(kind)

    def open(self) -> None:
        """Begin a file and end the one before; where that fails, the one before takes more rows."""
        try:
            handle = self._create_file()
        except OSError as exc:
            self._report(exc)
            return
        self._opened_at = time.monotonic()
        if self._handle is None:
            self._handle = handle
            return
        ended_handle = os.dup(self._handle)
        # One step of the kernel, so that `write` needs no lock. A write under way goes into the
        # file that is ended, and keeps it locked until it is done.
        os.dup2(handle, self._handle, inheritable=False)
        os.close(handle)
        self._sync(ended_handle)
        os.close(ended_handle)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Hand rows to the kernel, without waiting for the disk or for another thread.

        Returns:
            False if that failed: the first rows of a batch may be written, the last ones are not.

        """
        for start in range(0, len(rows), ROWS_PER_WRITE):
            part = rows[start : start + ROWS_PER_WRITE]
            lines = [to_json(row, inf_nan_mode="null") for row in part]
            try:
                self._append(b"\n".join([b"", *lines, b""]))
            except OSError as exc:
                self._report(exc)
                LOG_FAILURES.labels(self.kind).inc(len(rows) - start)
                return False
        self.problem = None
        return True

    def flush(self) -> None:
        """Bring rows to the disk, and begin a file if this one is old or none is open."""
        with self._flush_lock:
            started_at = time.monotonic()
            is_old = started_at - self._opened_at > FILE_SECONDS
            if self._handle is None or (is_old and os.fstat(self._handle).st_size):
                self.open()
            if self._handle is not None:
                self._sync(self._handle)
            LOG_LAG.labels(self.kind).set(time.monotonic() - self._flushed_at)
            self._flushed_at = started_at

    def close(self) -> None:
        """Bring rows to the disk, and close the file. No thread may write any more."""
        with self._flush_lock:
            if self._handle is not None:
                self._sync(self._handle)
                os.close(self._handle)
                self._handle = None

    def _append(self, content: bytes) -> None:
        if self._handle is None:
            raise OSError("no file is open")
        if os.write(self._handle, content) < len(content):
            raise OSError("the disk took only a part of the rows")

    def _create_file(self) -> int:
        started = time.time_ns() // 1000
        name = f"{self.kind}-{os.getpid()}-{started}-{os.urandom(4).hex()}"
        hidden_path = self._folder / f".{name}"
        self._folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(hidden_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            # Locked before it has its name: a file that can be found is never taken for closed.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._outbox:
                _link(hidden_path, self._outbox / f"{name}.jsonl")
            hidden_path.rename(self._folder / f"{name}.jsonl")
        except OSError:
            os.close(handle)
            hidden_path.unlink(missing_ok=True)
            raise
        return handle

    def _sync(self, handle: int) -> None:
        try:
            # Rows and the file's size, without its times.
            os.fdatasync(handle)
        except OSError as exc:
            self._report(exc)

    def _report(self, exc: OSError) -> None:
        """Log the first problem since a write succeeded; it is the cause of the others."""
        if self.problem is None:
            logger.error("%s log: %s", self.kind, exc)
            self.problem = str(exc)


def _link(path: Path, second_path: Path) -> None:
    """Give a file a second name, in a folder that is made if it is missing."""
    try:
        second_path.parent.mkdir(exist_ok=True)
        os.link(path, second_path)
    except OSError as exc:
        folders = "serving/outbox and serving/log of GYRE_HOME"
        remedy = f"{folders} need one file system with hard links"
        raise OSError(f"{exc}: {remedy}") from exc
