"""Feedback: each outcome is a row of the log."""


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
    wrong = [(name, actual) for actual in (True, None, [1], {})]
    wrong += [(wrong_id, 1) for wrong_id in ("", "a b", "ä", "a\n", "a" * 138)]
    for outcome in wrong:
        assert send(client, ("other", 1), outcome).status_code == 422
    infinite = '{"request_id": "a", "actual": 1e999}'
    assert client.post("/feedback", content=infinite).status_code == 422
    logged = [(row["request_id"], row["actual"]) for row in rig.rows("feedback")]
    lines = [row for row in logged if row[0] in {name, "new", "other"}]
    assert lines == [(name, 1.0), *rows]
    many = [(f"many-{number}", 1) for number in range(10_000)]
    assert send(client, *many).json() == {"recorded": 10_000, "logged": True}
    assert send(client, *many, ("more", 1)).status_code == 422
