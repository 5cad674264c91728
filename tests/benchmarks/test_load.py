"""The load generator and the soak's verdicts: a measure that lies is worse than none."""

from __future__ import annotations

import math
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from benchmarks.load import CONSTANT, NO_ANSWER, OK, load, post
from benchmarks.turns import Promotion, Seen, first_answers, stale

if TYPE_CHECKING:
    from collections.abc import Iterator

ASKED = post("/predict", b'{"customer_id":1}')


@contextmanager
def answering(*answers: bytes, slowly: float = 0.0) -> Iterator[int]:
    """A server that gives its first connection these answers, in pieces, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                for answer in answers:
                    if connection.recv(65_536) != ASKED:
                        return
                    time.sleep(slowly)
                    for at in range(0, len(answer), 10):
                        connection.sendall(answer[at : at + 10])

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


def test_each_answer_is_counted_once_by_its_status() -> None:
    refused = CONSTANT.replace(b"200 OK", b"503 Service Unavailable")
    seen = list[tuple[int, bytes]]()
    with answering(CONSTANT, refused, CONSTANT) as port:
        found = load(port, [ASKED], 1, count=3, seen=lambda *answer: seen.append(answer))
    assert [*found.status] == [OK, 503, OK]
    assert seen == [(OK, CONSTANT), (503, refused), (OK, CONSTANT)]
    assert (found.failed, found.unsent) == (1, 0)
    assert found.ms(100, good=False) > 0


def test_a_request_whose_connection_closes_has_failed() -> None:
    with answering(CONSTANT) as port:
        found = load(port, [ASKED], 1, count=2)
    assert [*found.status] == [OK, NO_ANSWER]


def test_what_is_due_while_no_connection_is_free_waits_since_then() -> None:
    with answering(*[CONSTANT] * 100, slowly=0.05) as port:
        found = load(port, [ASKED], 1, seconds=0.3, rate=1000)
    assert 3 <= len(found.took) <= 7
    assert found.unsent + len(found.took) == pytest.approx(300, abs=80)
    assert found.ms(100) > 150  # each answer took 50


@pytest.mark.parametrize(
    ("runs", "old", "first"),
    [
        ([("1", 0, 12), ("2", 12.1, 21), ("1", 21.1, 30)], 2, [2.1, 1.1]),
        ([("1", 0, 18), ("2", 18.1, 21), ("1", 21.1, 30)], 8, [8.1, 1.1]),
        ([("1", 0, 12), ("3", 12.1, 13), ("2", 14, 21), ("1", 22, 30)], math.inf, [4, 2]),
        ([("1", 0, 12), ("2", 12.1, 13), ("1", 13.1, 14), ("2", 14.1, 20)], 4, [2.1, math.inf]),
    ],
)
def test_a_version_that_answers_too_long_is_seen(runs, old, first) -> None:
    promotions = [Promotion("2", 10, 10), Promotion("1", 20, 20)]
    seen = Seen([*runs])
    assert stale(seen, promotions, "1") == pytest.approx(old)
    assert first_answers(seen, promotions) == pytest.approx(first)
