"""What came true: every id that an answer gave is taken, each outcome is a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.conftest import unused_port

if TYPE_CHECKING:
    import httpx
    import pytest

PROXY_ID = "shop/42:a-b_c.d+e=f@g" + "h" * 107
"""All characters that a proxy's id may have, and as many."""


def send(client: httpx.Client, *outcomes: tuple[str, Any]) -> httpx.Response:
    rows = [{"request_id": name, "actual": actual} for name, actual in outcomes]
    return client.post("/feedback", json=rows if len(rows) > 1 else rows[0])


def test_feedback_is_one_line_each_and_what_contradicts_is_left_to_the_join(
    rig: Any, served: Any
) -> None:
    client = served.client
    name = rig.predict(client).json()["request_id"]
    recorded = send(client, (name, 1)).json()
    assert recorded == {"recorded": 1, "logged": True}
    # The join leaves out what is no outcome of the model.
    rows = [("new", 0), (name, 0), (name, 0.5), (name, "early")]
    assert send(client, *rows).json() == {"recorded": 4, "logged": True}
    for wrong in (True, None, [1], {}):
        assert send(client, (name, wrong)).status_code == 422
        assert send(client, ("other", 1), (name, wrong)).status_code == 422
    infinite = '{"request_id": "a", "actual": 1e999}'
    assert client.post("/feedback", content=infinite).status_code == 422
    for wrong in ("", "a b", "ä", "a\n", "a" * 138):
        assert send(client, (wrong, 1)).status_code == 422
    logged = [(row["request_id"], row["actual"]) for row in rig.rows("feedback")]
    lines = [row for row in logged if row[0] in {name, "new", "other"}]
    assert lines == [(name, 1.0), *rows]
    many = [(f"many-{number}", 1) for number in range(10_000)]
    assert send(client, *many).json() == {"recorded": 10_000, "logged": True}
    assert send(client, *many, ("more", 1)).status_code == 422


def test_behind_a_proxy_ids_are_made_of_its_id_and_feedback_takes_them(
    rig: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GYRE_BEHIND_PROXY", "true")
    with rig.serving(serving_port=unused_port()) as (client, _):
        rig.known_to_be_ready(client)

        def ids(name: str) -> list[str]:
            rows = [{"customer_id": key} for key in (4, 4, 5)]
            headers = {"x-request-id": name}
            answer = client.post("/predict/batch", json=rows, headers=headers)
            assert answer.headers["x-request-id"] == name
            return [row["request_id"] for row in answer.json()]

        first = ids(PROXY_ID)
        assert ids(PROXY_ID) == first  # the proxy repeats a request elsewhere
        assert all(name.startswith(f"{PROXY_ID}-") for name in first)
        assert len({*first}) == 3
        assert send(client, *((name, 1) for name in first)).status_code == 200
        for unsafe in (b"", b"a b", b"a" * 129, b'x"y', "ä".encode()):
            answer = client.get("/health/live", headers=[(b"x-request-id", unsafe)])
            assert len(answer.headers["x-request-id"]) == 32
    logged = [row["request_id"] for row in rig.rows()]
    assert [logged.count(name) for name in first] == [2, 2, 2]


def test_without_a_proxy_nobody_chooses_the_id_of_a_request(served: Any) -> None:
    for path in ("/predict", "/v1/models", "/health/live", "/nothing", "/docs"):
        names = {
            served.client.get(path, headers={"x-request-id": "mine"}).headers[
                "x-request-id"
            ]
            for _ in range(2)
        }
        assert len(names) == 2
        assert "mine" not in names
