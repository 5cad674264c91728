"""A worker's side of `serving.pyfunc`: the process of one version, used as an ONNX session is."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlflow_server.served_model import ServedModel
from serving.errors import ModelFailedError, NoModelError
from serving.metrics import PYFUNC_PROCESSES

START_SECONDS, ANSWER_SECONDS, RETRY_SECONDS = 60.0, 10.0, 10.0
# More take longer for one row.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1",
}
logger = logging.getLogger(__name__)


class PyfuncProcess:
    """Started again whenever it ends, until `close`.

    problem: why it cannot score. thread: where to call `run`, as no event loop must wait for it.
    """

    def __init__(
        self, folder: Path, contract: ServedModel, digest: str, trusted: Sequence[str]
    ) -> None:
        how = {"loader": contract.loader, "classes": contract.class_count}
        arguments = (
            str(folder / contract.file),
            digest,
            json.dumps({**how, "trusted": trusted}),
        )
        self._command = (sys.executable, "-m", "serving.pyfunc", *arguments)
        self._name = f"version {folder.name} of {contract.model}"
        self._first_row = {name: [value] for name, value in contract.defaults.items()}
        self._running = PYFUNC_PROCESSES.labels(contract.model, folder.name)
        self._closed = threading.Event()
        self.problem: str | None = None
        self.thread = ThreadPoolExecutor(1)
        self._start()
        threading.Thread(target=self._keep, daemon=True).start()

    def run(
        self, _outputs: Sequence[str], columns: Mapping[str, Any]
    ) -> list[NDArray[np.float64]]:
        """Score [N]. NoModelError: it is away, or is killed as it gives no answer in time."""
        if self.problem:
            raise NoModelError(f"{self._name} {self.problem}")
        child = self._child
        try:
            return [
                self._ask({name: column.tolist() for name, column in columns.items()})
            ]
        except (OSError, EOFError) as exc:
            child.kill()
            raise NoModelError(
                f"{self._name} cannot score: its process: {exc!r}"
            ) from exc

    def close(self) -> None:
        self._closed.set()
        self._child.kill()
        self.thread.shutdown(wait=False)

    def _ask(self, columns: Mapping[str, list[Any]]) -> NDArray[np.float64]:
        lines = self._lines
        lines.write(json.dumps(columns) + "\n")
        lines.flush()
        if not (line := lines.readline()):
            raise EOFError("it ended")
        if isinstance(answer := json.loads(line), str):
            raise ModelFailedError(answer)
        return np.array(answer)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        # Of a session of its own: it ends with the worker, by no signal to a group.
        with theirs:
            more = os.environ | ONE_THREAD
            self._child = subprocess.Popen(
                self._command, stdin=theirs.fileno(), env=more, start_new_session=True
            )
        self._lines = ours.makefile("rw")
        ours.settimeout(START_SECONDS)
        try:
            self._ask(self._first_row)
        except BaseException:
            self._child.kill()
            raise
        ours.settimeout(ANSWER_SECONDS)
        self._running.set(1)
        self.problem = None
        if self._closed.is_set():
            self._child.kill()

    def _keep(self) -> None:
        while True:
            ended = self._child.wait()
            self.problem = (
                f"cannot score: its process ended ({ended}), another one is starting"
            )
            self._running.set(0)
            if self._closed.is_set():
                return
            logger.warning("%s %s", self._name, self.problem)
            try:
                self._start()
            except Exception:
                logger.exception("%s: its process does not start", self._name)
                self._closed.wait(RETRY_SECONDS)
