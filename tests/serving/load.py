"""Requests without pause, and what came back."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED = 0
"""The status of a request that got no answer."""


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
def under_load(client: httpx.Client, workers: int = 2) -> Iterator[list[Answered]]:
    """Ask from `workers` connections at once until the block ends; one that fails stops."""
    answers: list[Answered] = []
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=client.base_url, timeout=10) as own:
            status = 200
            while status != FAILED and not stop.is_set():
                asked = time.monotonic()
                try:
                    answer = own.post("/predict", json={"customer_id": 4})
                    status, body = answer.status_code, answer.json()
                except httpx.HTTPError as exc:
                    status, body = FAILED, {"error": str(exc)}
                answers.append(Answered(asked, time.monotonic(), status, body))

    threads = [threading.Thread(target=load) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
