"""Requests until a test has seen enough, and what came back.

They are asked by a process of their own (this file is its program): one that has imported all that
the tests do is stopped by its garbage collector for 0.2 to 0.5 s, and would measure that.
"""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx

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
    def took(self):
        return self.at - self.asked

    @property
    def version(self):
        return str(self.body.get("model_version"))


@contextmanager
def repeated(step, pause_seconds):
    """Repeat a step in another thread until the block ends."""
    stop = threading.Event()

    def repeat():
        while not stop.wait(pause_seconds):
            step()

    with ThreadPoolExecutor(1) as threads:
        repeating = threads.submit(repeat)
        try:
            yield
        finally:
            stop.set()
        repeating.result()


@contextmanager
def under_load(client, workers=2, pause=PAUSE):
    """Ask from `workers` connections at once until the block ends; one that fails stops."""
    command = [sys.executable, __file__, str(client.base_url), str(workers), str(pause)]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
        ThreadPoolExecutor(1) as threads,
    ):
        answers = [Answered(*json.loads(process.stdout.readline()))]

        def listen():
            for line in process.stdout:
                answers.append(Answered(*json.loads(line)))  # noqa: PERF401  (one by one)

        listening = threads.submit(listen)
        try:
            yield answers
        finally:
            process.stdin.close()
            listening.result()


def ask(address, workers, pause):
    """Write each answer as a line; until the input ends."""
    stop = threading.Event()
    writing = threading.Lock()

    def load():
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

    with ThreadPoolExecutor(workers) as threads:
        for _ in range(workers):
            threads.submit(load)
        sys.stdin.read()
        stop.set()


if __name__ == "__main__":
    ask(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
