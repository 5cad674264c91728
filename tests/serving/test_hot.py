"""The short way of requests whose head is known: the same answers, in order, and nothing lost."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from serving.access import Access
from serving.app import create_app
from serving.hot import MOST_HEADS, Hot
from serving.http_connection import PACKET_SECONDS, BoundedConnection
from stack.spec import load_specs
from tests.conftest import unused_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEEP_ALIVE = 1
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
V2 = {"inputs": [{"name": "customer_id", "datatype": "INT64", "shape": [1], "data": [4]}]}
BODIES: dict[str, list[Any]] = {
    "/predict": [{"customer_id": 4}, {"customer_id": 10**9}, {"customer_id": "4"}, [], {},
                 {"customer_id": 4, "features": {"days_since_last_order": 1}}],
    "/predict/batch": [[{"customer_id": 4}, {"customer_id": 5}], [{"customer_id": 10**9}], []],
    "/v1/models/customer_churn_model:predict": [{"instances": [{"customer_id": 4}]}, {"x": 1}],
    "/v2/models/customer_churn_model/infer": [V2, {"inputs": []}],
    "/invocations": [{"dataframe_records": [{"customer_id": 4}]}, {"dataframe_records": 1}],
}  # fmt: skip


class Inside:
    """A worker's application in this process, so that what it knows can be looked at."""

    def __init__(self, settings: Any) -> None:
        self.app = create_app(settings, load_specs())
        self.port, self.hot = settings.serving_port, self.app.state.hot
        config = uvicorn.Config(
            self.app, port=self.port, http=BoundedConnection, ws="none", loop="uvloop",
            proxy_headers=False, server_header=False, log_config=None, access_log=False,
            timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=5,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@contextmanager
def started(rig: Any, home: Path) -> Iterator[Inside]:
    rig.copy_what_serves(home)
    found = Inside(rig.settings.model_copy(update={"home": home, "serving_port": unused_port()}))
    found.thread.start()
    wait_until("a worker", lambda: found.server.started)
    yield found
    found.server.should_exit = True
    found.thread.join(15)
    assert not found.thread.is_alive()


@pytest.fixture(scope="module")
def inside(rig: Any, served: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    rig.known_to_be_ready(served.client)
    with started(rig, tmp_path_factory.mktemp("inside")) as found:
        yield found


def post(path: str, body: Any, headers: str = "") -> bytes:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(sent) + sent


def receive(sent: socket.socket, count: int) -> list[tuple[bytes, bytes]]:
    """Heads and bodies of the next `count` answers."""
    found, data = list[tuple[bytes, bytes]](), b""
    while len(found) < count:
        head, end, rest = data.partition(b"\r\n\r\n")
        length = int(LENGTH.search(head)[1]) if end else 0  # type: ignore[index]
        if end and len(rest) >= length:
            found.append((head, rest[:length]))
            data = rest[length:]
            continue
        more = sent.recv(65_536)
        assert more, f"closed after {len(found)} of {count}"
        data += more
    assert not data
    return found


def known(inside: Inside, request: bytes) -> bool:
    return inside.hot.head(request.partition(b"\r\n\r\n")[0]) is not None


def said(answer: tuple[bytes, bytes]) -> tuple[bytes, set[bytes], bytes]:
    """What does not differ from answer to answer."""
    head, body = answer
    status, *headers = head.split(b"\r\n")
    names = {name.partition(b":")[0] for name in headers}
    return status, names, re.sub(rb"[0-9a-f]{32}", b"", body)


@pytest.mark.parametrize(("path", "body"), [(p, b) for p, each in BODIES.items() for b in each])
def test_a_known_head_is_answered_as_an_unknown_one(inside: Inside, path: str, body: Any) -> None:
    asked = post(path, body, f"x-test: {path} {str(body).encode().hex()}\r\n")
    with inside.connect() as sent:
        assert not known(inside, asked)
        sent.sendall(asked)
        first = said(receive(sent, 1)[0])
        assert known(inside, asked)
        (connection,) = inside.server.server_state.connections
        assert not connection._answered
        sent.sendall(asked)
        assert said(receive(sent, 1)[0]) == first
        assert connection._answered


@pytest.mark.parametrize(
    "headers",
    ["Transfer-Encoding: chunked\r\n", "Content-Encoding: gzip\r\n", "Expect: 100-continue\r\n",
     "Connection: close\r\n", "Upgrade: h2c\r\n", "Content-Type: text/plain\r\n"],
)  # fmt: skip
def test_a_head_that_says_more_is_never_learned(inside: Inside, headers: str) -> None:
    asked = post("/predict", {"customer_id": 4}, headers)
    with inside.connect() as sent:
        sent.sendall(asked)
        assert sent.recv(65_536)
    assert not known(inside, asked)


def test_other_paths_methods_and_large_bodies_are_never_learned(inside: Inside) -> None:
    many = [{"customer_id": 4}] * 500
    old = post("/predict", {"customer_id": 4}).replace(b"HTTP/1.1", b"HTTP/1.0")
    merge, get = post("/predict?merge=true", {"customer_id": 4}), b"GET /ping HTTP/1.1\r\n\r\n"
    for asked in (old, merge, get, post("/feedback", {}), post("/predict/batch", many)):
        with inside.connect() as sent:
            sent.sendall(asked)
            assert sent.recv(65_536)
        assert not known(inside, asked)


def test_what_comes_after_an_early_answer_is_still_its_body(inside: Inside) -> None:
    """A request inside of a body is none, whether it is known, or would be learned from there."""
    asked, last = (post("/predict", {"customer_id": key}) for key in (4, 6))
    unknown = post("/predict", {"customer_id": 7}, "x-inside: 1\r\n")
    with inside.connect() as sent:
        sent.sendall(asked)
        receive(sent, 1)
        for hidden in (asked, unknown):
            sent.sendall(b"POST /nowhere HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(hidden))
            assert receive(sent, 1)[0][0].startswith(b"HTTP/1.1 404")
            sent.sendall(hidden)
            sent.sendall(last)
            assert json.loads(receive(sent, 1)[0][1])["customer_id"] == 6
    assert known(inside, asked)
    assert not known(inside, unknown)


def test_the_pattern_of_a_path_is_no_path(inside: Inside) -> None:
    asked = post("/v2/models/customer_churn_model/versions/%7Bversion%7D/infer", V2)
    with inside.connect() as sent:
        for _ in range(2):
            sent.sendall(asked)
            assert receive(sent, 1)[0][0].startswith(b"HTTP/1.1 404")


def test_answers_come_in_the_order_of_the_requests_however_they_are_cut(inside: Inside) -> None:
    """Known heads, unknown ones and other routes, sent at once, in halves and byte by byte."""
    keys = [4, 5, 6, 7, 8, 9]
    asked = [post("/predict", {"customer_id": key}) for key in keys]
    asked[3] = post("/predict", {"customer_id": 7}, "x-other: 1\r\n")
    with inside.connect() as sent:
        sent.sendall(asked[0])
        receive(sent, 1)
        assert known(inside, asked[0])
        for cut in (10_000, 150, 97, 31, 1):
            stream = b"".join(asked)
            for at in range(0, len(stream), cut):
                sent.sendall(stream[at : at + cut])
                if cut > 1:
                    time.sleep(0.002)
            bodies = [json.loads(body) for _, body in receive(sent, len(keys))]
            assert [body["customer_id"] for body in bodies] == keys


def test_a_body_in_a_packet_of_its_own_goes_the_same_way_and_a_late_one_too(
    inside: Inside,
) -> None:
    """As Python's http.client sends them."""
    asked = post("/predict", {"customer_id": 44}, "x-apart: 1\r\n")
    head, body = asked[:-19], asked[-19:]
    with inside.connect() as sent:
        for wait in (0.01, 0.01, 2 * PACKET_SECONDS):
            sent.sendall(head)
            time.sleep(wait)
            sent.sendall(body)
            assert json.loads(receive(sent, 1)[0][1])["customer_id"] == 44
            assert known(inside, asked)
    client = http.client.HTTPConnection("127.0.0.1", inside.port)
    for _ in range(3):
        client.request("POST", "/predict", b'{"customer_id": 4}')
        assert json.loads(client.getresponse().read())["customer_id"] == 4
    client.close()


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(inside: Inside) -> None:
    asked = post("/predict", {"customer_id": 4})
    with inside.connect() as sent:
        until = time.monotonic() + 2.5 * KEEP_ALIVE
        while time.monotonic() < until:
            sent.sendall(asked)
            receive(sent, 1)
            time.sleep(0.1)
        assert sent.recv(1) == b""
        assert time.monotonic() < until + 3 * KEEP_ALIVE


def test_who_leaves_early_holds_up_nobody_and_is_not_counted_as_under_way(inside: Inside) -> None:
    asked = post("/predict", {"customer_id": 4})
    for _ in range(50):
        with inside.connect() as sent:
            sent.sendall(asked)
            sent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with inside.connect() as sent:
        sent.sendall(asked)
        receive(sent, 1)
    assert inside.hot.under_way == 0


def test_what_has_begun_is_answered_before_the_server_ends(
    rig: Any, served: Any, tmp_path: Path
) -> None:
    """A worker is told to end with a hundred requests in its sockets."""
    asked = post("/predict", {"customer_id": 4})
    with started(rig, tmp_path) as inside:
        opened = [inside.connect() for _ in range(100)]
        for sent in opened:
            sent.sendall(asked)
            receive(sent, 1)
        for sent in opened:
            sent.sendall(asked)
        inside.server.should_exit = True
        answers = [receive(sent, 1)[0] for sent in opened]
        assert {head[:12] for head, _ in answers} == {b"HTTP/1.1 200"}
        for sent in opened:
            assert sent.recv(1) == b""
            sent.close()


def test_a_known_head_is_worth_no_more_than_its_token(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("one-0123456789\n")
    access = Access(tokens)
    hot = Hot({"/predict": object()}, access)  # type: ignore[dict-item]
    for head, authorization in (
        (b"a", b"Bearer one-0123456789"),
        (b"b", b"Bearer no"),
        (b"c", b""),
    ):
        headers = [(b"authorization", authorization), (b"content-length", b"1")]
        hot.learn(head, "/predict", b"", headers)
    assert [hot.head(head) is not None for head in (b"a", b"b", b"c")] == [True, False, False]
    tokens.write_text("two-0123456789\n")
    access._look_at = 0.0
    assert hot.head(b"a") is None
    hot.learn(b"d", "/predict", b"", [(b"content-length", b"1")])
    assert not {b"b", b"c", b"d"} & hot._known.keys()


def test_heads_that_never_come_again_take_no_memory() -> None:
    hot = Hot({"/predict": object()}, None)  # type: ignore[dict-item]
    for n in range(3 * MOST_HEADS):
        hot.learn(b"%d" % n, "/predict", b"", [(b"content-length", b"1")])
        assert len(hot._known) <= MOST_HEADS
    hot.learn(b"x" * 5000, "/predict", b"", [(b"content-length", b"1")])
    assert hot.head(b"x" * 5000) is None
    assert hot.head(b"%d" % n) is not None
