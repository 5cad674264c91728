"""Feedback: every id of an answer is accepted, and each outcome is a row of the log."""

from tests.conftest import unused_port

PROXY_ID = "shop/42:a-b_c.d+e=f@g" + "h" * 107
"""All characters that a proxy's id may have, and as many."""


def send(client, *outcomes):
    rows = [{"request_id": name, "actual": actual} for name, actual in outcomes]
    return client.post("/feedback", json=rows if len(rows) > 1 else rows[0])


def test_each_outcome_is_logged_and_wrong_outcomes_are_refused_with_their_request(
    rig, served
):
    client = served.client
    name = rig.predict(client).json()["request_id"]
    assert send(client, (name, 1)).json() == {"recorded": 1, "logged": True}
    # The join with predictions leaves out contradictions and what is no outcome of the model.
    rows = [("new", 0), (name, 0), (name, 0.5), (name, "early")]
    assert send(client, *rows).json() == {"recorded": 4, "logged": True}
    for actual in (True, None, [1], {}):
        assert send(client, ("other", 1), (name, actual)).status_code == 422
    infinite = '{"request_id": "a", "actual": 1e999}'
    assert client.post("/feedback", content=infinite).status_code == 422
    for wrong_id in ("", "a b", "ä", "a\n", "a" * 138):
        assert send(client, (wrong_id, 1)).status_code == 422
    logged = [(row["request_id"], row["actual"]) for row in rig.rows("feedback")]
    lines = [row for row in logged if row[0] in {name, "new", "other"}]
    assert lines == [(name, 1.0), *rows]
    many = [(f"many-{number}", 1) for number in range(10_000)]
    assert send(client, *many).json() == {"recorded": 10_000, "logged": True}
    assert send(client, *many, ("more", 1)).status_code == 422


def test_ids_behind_a_proxy_begin_with_the_proxys_id_and_feedback_accepts_them(
    rig, served, monkeypatch
):
    monkeypatch.setenv("GYRE_BEHIND_PROXY", "true")
    with rig.serving(serving_port=unused_port()) as (client, _):
        rig.known_to_be_ready(client)

        def ids():
            rows = [{"customer_id": key} for key in (4, 4, 5)]
            headers = {"x-request-id": PROXY_ID}
            answer = client.post("/predict/batch", json=rows, headers=headers)
            assert answer.headers["x-request-id"] == PROXY_ID
            return [row["request_id"] for row in answer.json()]

        row_ids = ids()
        assert ids() == row_ids  # the proxy repeats a request
        assert all(row_id.startswith(f"{PROXY_ID}-") for row_id in row_ids)
        assert len(set(row_ids)) == 3
        assert send(client, *((row_id, 1) for row_id in row_ids)).status_code == 200
        for unsafe in (b"", b"a b", b"a" * 129, b'x"y', "ä".encode()):
            answer = client.get("/health/live", headers=[(b"x-request-id", unsafe)])
            assert len(answer.headers["x-request-id"]) == 32


def test_a_client_without_a_proxy_cannot_choose_the_id_of_a_request(served):
    for path in ("/predict", "/v1/models", "/health/live", "/nothing", "/docs"):
        answer = served.client.get(path, headers={"x-request-id": "mine"})
        assert len(answer.headers["x-request-id"]) == 32
