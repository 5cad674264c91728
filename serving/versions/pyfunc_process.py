"""A worker's side of `serving.versions.pyfunc`: a session that scores in a process of its own."""

import logging
import multiprocessing
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlflow_server.manifest import ModelManifest
from serving.errors import ModelFailedError, NoModelError
from serving.metrics import PYFUNC_PROCESSES
from serving.versions.pyfunc import answer_worker

START_SECONDS = 60.0
ANSWER_SECONDS = 10.0
RETRY_SECONDS = 10.0
SPAWN = multiprocessing.get_context("spawn")
logger = logging.getLogger(__name__)


class PyfuncSession:
    """A session whose process is started again whenever it ends, until `close`.

    Attributes:
        problem: Why the session cannot score.
        thread: Thread that starts and asks the process, as no event loop must wait for it.

    """

    def __init__(
        self, file: Path, contract: ModelManifest, digest: str, trusted: Sequence[str]
    ) -> None:
        options = {
            "loader": contract.loader,
            "classes": contract.class_count,
            "trusted": tuple(trusted),
            "interface": contract.interface,
        }
        self._arguments = (file, digest, options)
        self._name = f"version {file.parent.name} of {contract.model}"
        self._defaults = {
            name: np.array([value]) for name, value in contract.defaults.items()
        }
        self._is_running = PYFUNC_PROCESSES.labels(contract.model, file.parent.name)
        self._closed = threading.Event()
        self.problem: str | None = None
        self.thread = ThreadPoolExecutor(1)
        self._start()
        threading.Thread(target=self._keep, daemon=True).start()

    def run(
        self, _outputs: Sequence[str], columns: Mapping[str, Any]
    ) -> list[NDArray[np.float64]]:
        """Score the rows in `columns`.

        Raises:
            ModelFailedError: The model cannot score them.
            NoModelError: The process is away, or is killed as it does not answer in time.

        """
        if self.problem is not None:
            raise NoModelError(f"{self._name} {self.problem}")
        return [self._ask(columns, ANSWER_SECONDS)]

    def close(self) -> None:
        """End the process once it has answered."""
        self._closed.set()
        self.thread.submit(lambda: self._process.kill())  # noqa: PLW0108  (the process at that time)
        self.thread.shutdown(wait=False)

    def _ask(self, columns: Mapping[str, Any], seconds: float) -> NDArray[np.float64]:
        """Return the scores of the process, which is killed if it does not answer in time."""
        # A process that hangs holds up `send`, too, where there are many rows.
        deadline = threading.Timer(seconds, self._process.kill)
        deadline.start()
        try:
            self._connection.send(dict(columns))
            answer = self._connection.recv()
        except (EOFError, OSError) as exc:
            raise NoModelError(
                f"{self._name} cannot score: its process: {exc!r}"
            ) from exc
        finally:
            deadline.cancel()
        if isinstance(answer, str):
            raise ModelFailedError(answer)
        scores: NDArray[np.float64] = answer
        return scores

    def _start(self) -> None:
        """Start a process and have it score the defaults."""
        self._connection, other_end = SPAWN.Pipe()
        self._process = SPAWN.Process(
            target=answer_worker, args=(other_end, *self._arguments), daemon=True
        )
        self._process.start()
        other_end.close()  # so that the end of the process ends the connection
        try:
            self._ask(self._defaults, START_SECONDS)
        except BaseException:
            self._process.kill()
            raise
        self._is_running.set(1)
        self.problem = None

    def _keep(self) -> None:
        """Start the process again each time that it has ended."""
        while True:
            self._process.join()
            code = self._process.exitcode
            self.problem = (
                f"cannot score: its process ended ({code}), another one is starting"
            )
            self._is_running.set(0)
            if self._closed.is_set():
                return
            logger.warning("%s %s", self._name, self.problem)
            try:
                self.thread.submit(self._start).result()
            except Exception:
                logger.exception("%s: its process does not start", self._name)
                self._closed.wait(RETRY_SECONDS)
