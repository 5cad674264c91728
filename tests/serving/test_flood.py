"""The load generator: a measure that lies is worse than none."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.serving.flood import NO_ANSWER, OK, load, post

if TYPE_CHECKING:
    from collections.abc import Iterator

ASKED = post("/predict", b'{"customer_id":1}')
CONSTANT = b"HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\r\n" + b'{"probability":0.5}'
REFUSAL = CONSTANT.replace(b"200 OK", b"503 Service Unavailable")


@contextmanager
def answering(*answers: bytes, slowly: float = 0.0) -> Iterator[int]:
    """A server that gives its first connection these answers, in pieces, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for answer in answers:
                    if connection.recv(65_536) != ASKED:
                        return
                    threading.Event().wait(slowly)
                    for at in range(0, len(answer), 10):
                        connection.sendall(answer[at : at + 10])

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def test_each_answer_is_counted_once_by_its_status_and_a_closed_connection_has_failed() -> (
    None
):
    with answering(CONSTANT, REFUSAL, CONSTANT) as port:
        result = load(port, [ASKED], 1, seconds=5)
    assert result.statuses in ([OK, 503, OK], [OK, 503, OK, NO_ANSWER])
    assert len(result.durations_of(503)) == 1
    assert result.failed == len(result.statuses) - 2


def test_what_is_due_while_no_connection_is_free_waits_since_then() -> None:
    with answering(*[CONSTANT] * 100, slowly=0.05) as port:
        result = load(port, [ASKED], 1, seconds=0.3, rate=1000)
    answered = len(result.durations)
    assert 1 <= answered <= 7
    assert result.statuses == [OK] * answered
    # Each answer took 50 ms, and all were due at once.
    assert result.ms(100) > 40 * answered
