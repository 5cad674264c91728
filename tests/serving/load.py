"""Requests until a test has seen enough, and what came back.

They are asked by a process of their own (this file is its program): one that has imported all that
the tests do is stopped by its garbage collector for 0.2 to 0.5 s, and would measure that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED = 0
"""The status of a request that got no answer."""
PAUSE = 0.01
"""Seconds from an answer to the next request: without, both cores have nothing else to do."""


class Answered(NamedTuple):
    """One request; `asked` and `at` in monotonic seconds."""

    asked: float
    at: float
    status: int
    body: dict[str, Any]

    @property
    def took(self) -> float:
        return self.at - self.asked

    @property
    def version(self) -> str:
        return str(self.body.get("model_version"))


@contextmanager
def under_load(
    client: httpx.Client, workers: int = 2, pause: float = PAUSE
) -> Iterator[list[Answered]]:
    """Ask from `workers` connections at once until the block ends; one that fails stops."""
    answers: list[Answered] = []
    began = threading.Event()
    command = [sys.executable, __file__, str(client.base_url), str(workers), str(pause)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as asking:

        def listen() -> None:
            for line in asking.stdout or ():
                answers.append(Answered(*json.loads(line)))
                began.set()
            began.set()

        listening = threading.Thread(target=listen)
        listening.start()
        try:
            began.wait(600)
            assert answers, "no answer to the first request"
            yield answers
        finally:
            if asking.stdin:
                asking.stdin.close()
            listening.join()


def ask(address: str, workers: int, pause: float) -> None:
    """Write each answer as a line; until the input ends."""
    stop = threading.Event()
    writing = threading.Lock()

    def load() -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            status = 200
            while status != FAILED and not stop.is_set():
                start = time.monotonic()
                try:
                    answer = client.post("/predict", json={"customer_id": 4})
                    status = answer.status_code
                    body = answer.json()
                except httpx.HTTPError as exc:
                    status = FAILED
                    body = {"error": str(exc)}
                line = json.dumps([start, time.monotonic(), status, body])
                with writing:
                    sys.stdout.write(f"{line}\n")
                    sys.stdout.flush()
                time.sleep(pause)

    threads = [threading.Thread(target=load) for _ in range(workers)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    ask(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
