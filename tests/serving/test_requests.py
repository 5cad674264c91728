"""Around a request: its id, its count, its place in the queue, and the models it may name."""

from __future__ import annotations

import json
import re
import select
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serving.errors import NotFoundError
from serving.prediction_log import AppendLog
from serving.repository import ModelRepository
from tests.conftest import new_settings, unused_port
from tests.serving.conftest import SPEC

BODY = b'{"customer_id": 4}'
POST = (
    b"POST /predict HTTP/1.1\r\nhost: gyre\r\ncontent-length: %d\r\n\r\n" % len(BODY)
    + BODY
)
OTHER = SPEC.model_copy(update={"name": "other_model", "served_as": ()})


@pytest.mark.parametrize(
    "path", ["/predict", "/v1/models", "/health/live", "/nothing", "/docs"]
)
def test_every_answer_carries_the_request_id_of_the_client_or_a_new_one(
    served: Any, path: str
) -> None:
    def ask(*ids: bytes) -> str:
        headers = [(b"x-request-id", each) for each in ids]
        answer = served.client.post(path, content=BODY, headers=headers)
        return str(answer.headers["x-request-id"])

    assert ask(b"shop/42:a-b_c.d") == "shop/42:a-b_c.d"
    for unsafe in (b"", b"a b", b"a" * 129, b'x"y', "ä".encode()):
        assert re.fullmatch("[0-9a-f]{32}", ask(unsafe))
    assert ask() != ask()


def test_the_id_of_a_request_is_not_that_of_its_rows(rig: Any, served: Any) -> None:
    """Two requests may bring one id; what a row is called by feedback is unique."""
    answers = [
        served.client.post("/predict", content=BODY, headers={"x-request-id": "mine"})
        for _ in range(2)
    ]
    assert {answer.headers["x-request-id"] for answer in answers} == {"mine"}
    assert len({answer.json()["request_id"] for answer in answers}) == 2


def test_a_request_that_a_proxy_repeats_keeps_the_ids_of_its_rows(
    rig: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GYRE_BEHIND_PROXY", "true")
    with rig.serving(serving_port=unused_port()) as (client, _):
        rig.known_to_be_ready(client)
        rows, header = (
            [{"customer_id": each} for each in (4, 4, 5)],
            {"x-request-id": "of-nginx"},
        )
        twice = [
            client.post("/predict/batch", json=rows, headers=header).json()
            for _ in range(2)
        ]
    first, again = ([answer["request_id"] for answer in answers] for answers in twice)
    assert (first, len({*first})) == (again, 3)
    logged = [row["request_id"] for row in rig.rows()]
    assert [logged.count(each) for each in first] == [2, 2, 2]


def test_every_request_is_counted_by_the_template_of_its_route(served: Any) -> None:
    served.client.post("/models/churn-predictor/predict", content=BODY)
    served.client.get("/v1/models/nobody")
    served.client.get("/nothing-of-that-name")
    text = served.client.get("/metrics").text
    for labels in (
        'model="customer_churn_model",route="/models/{name}/predict",status="200"',
        'model="",route="/v1/models/{name}",status="404"', 'model="",route="",status="404"',
    ):  # fmt: skip
        assert f"gyre_requests_total{{{labels}}}" in text


def test_requests_at_once_are_answered_each_with_its_own(rig: Any, served: Any) -> None:
    def ask(key: int) -> tuple[int, int, str]:
        answer = rig.predict_online(served.client, key)
        return key, answer.status_code, answer.text

    with ThreadPoolExecutor(32) as many:
        answers = [*many.map(ask, [*range(1, 200), *([99_999_999] * 20)])]
    for key, status, text in answers:
        assert status == (404 if key == 99_999_999 else 200)
        assert str(key) in text


def test_what_has_begun_is_answered_before_the_server_ends(
    rig: Any, served: Any
) -> None:
    """SIGTERM with a hundred requests in its sockets: whole answers, or not a row and no byte."""
    with rig.serving(home=rig.home_beside(), serving_port=unused_port()) as (
        client,
        process,
    ):
        rig.known_to_be_ready(client)
        port, before = client.base_url.port, len(rig.rows())
        opened = [
            socket.create_connection(("127.0.0.1", port), 600) for _ in range(100)
        ]
        for sent in opened:
            sent.sendall(POST)
        select.select(opened, [], [])  # the first answer
        process.terminate()
        answers = [answer for sent in opened if (answer := read_to_end(sent))]
        assert process.wait(600) == 0
    for answer in answers:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert json.loads(body)["customer_id"] == 4
    assert answers
    assert len(rig.rows()) - before == len(answers)


def read_to_end(opened: socket.socket) -> bytes:
    """Read an answer; none of a request that waited yet unread, which the system resets."""
    received = b""
    with opened:
        try:
            while part := opened.recv(65_536):
                received += part
        except ConnectionResetError:
            assert received == b""
    return received


def test_models_come_and_go_without_touching_the_others(tmp_path: Any) -> None:
    log = AppendLog(tmp_path, "predictions")
    repository = ModelRepository(new_settings(tmp_path), log)
    assert repository.update([SPEC]) == []
    churn = repository.find("churn-predictor")
    assert repository.find(None) is churn
    assert repository.update([SPEC, OTHER]) == []
    assert repository.find("customer_churn_model") is churn
    with pytest.raises(NotFoundError, match="GYRE_DEFAULT_MODEL"):
        repository.find(None)
    renamed = SPEC.model_copy(update={"served_as": ("leavers",)})
    assert repository.update([renamed, OTHER]) == []
    assert repository.find("leavers") is churn
    with pytest.raises(
        NotFoundError, match="there is customer_churn_model, other_model"
    ):
        repository.find("churn-predictor")
    by_shop = SPEC.model_copy(update={"entity_key": {"shop_id": "int64"}})
    assert repository.update([by_shop, OTHER]) == [churn.holder]
    assert repository.find("churn-predictor") is not churn
    other = repository.find("other_model")
    assert repository.update([by_shop]) == [other.holder]
    assert [*repository.holders] == ["customer_churn_model"]
    repository.update([])
    with pytest.raises(NotFoundError, match="none is served"):
        repository.find(None)
