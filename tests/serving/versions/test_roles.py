"""Who answers: a challenger for its share of the customers, a shadow for nobody."""

from collections import Counter
from functools import partial

import pytest

from mlflow_server.api.registry import Registry
from tests.conftest import wait_until
from tests.serving.conftest import counted, tiny_onnx

CUSTOMERS = range(1, 1001)


def ask_all(client):
    """Return the version that answers each customer."""
    body = [{"customer_id": key} for key in CUSTOMERS]
    answer = client.post("/predict/batch", json=body)
    assert answer.status_code == 200, answer.text
    return {row["customer_id"]: row["model_version"] for row in answer.json()}


@pytest.fixture(scope="module")
def two_workers(rig, served):
    with rig.serving(home=rig.second_home(), serving_workers=2) as (client, _):
        rig.known_to_be_ready(client)
        yield client


@pytest.fixture
def workers(rig, served, two_workers):
    """A server of two workers; afterwards nobody is on trial."""

    def has_no_trial(client):
        status = client.get("/status").json()
        versions = status["models"][rig.spec.name]["versions"]
        return versions == {"production": served.first}

    yield two_workers
    for role in Registry(rig.settings).aliases(rig.spec.name):
        if role in {"challenger", "shadow"}:
            rig.release(role)
    for client in (two_workers, served.client):
        wait_until("no trial", partial(has_no_trial, client))


@pytest.mark.journey
def test_a_challenger_always_answers_the_same_share_of_the_customers(
    rig, served, workers
):
    def challenged():
        versions = ask_all(workers).items()
        return {key for key, version in versions if version == served.second}

    rig.promote(served.second, role="challenger", percent=10)
    wait_until("a challenger", challenged)
    # A poll may see the alias before the ledger's percent; and each worker follows by itself.
    wait_until("both", lambda: len({str(ask_all(workers)) for _ in range(6)}) == 1)
    customers = challenged()
    assert 60 < len(customers) < 140  # four standard deviations
    body = {"customer_id": min(customers), "features": rig.features}
    answer = workers.post("/predict", json=body)
    assert answer.json()["model_version"] == served.second
    assert rig.row_of(answer)["role"] == "challenger"
    # A request that names the version in production is answered by it.
    key = {
        "name": "customer_id",
        "shape": [1],
        "datatype": "INT64",
        "data": [min(customers)],
    }
    path = f"/v2/models/{rig.spec.name}/versions/{{}}/infer"
    for version, status in ((served.first, 200), (served.second, 404)):
        pinned = workers.post(path.format(version), json={"inputs": [key]})
        assert pinned.status_code == status
        assert pinned.json().get("model_version") in (served.first, None)
    keys = key | {"shape": [len(CUSTOMERS)], "data": [*CUSTOMERS]}
    path = f"/v2/models/{rig.spec.name}/infer"
    assert "model_version" not in workers.post(path, json={"inputs": [keys]}).json()
    rig.promote(served.second, role="challenger", percent=50)
    wait_until("half", lambda: len(challenged()) > 400)
    assert customers < challenged()


@pytest.mark.journey
def test_a_shadow_scores_the_requests_that_production_answers(rig, served, workers):
    def shadow_rows():
        rows = rig.rows(text='"role":"shadow"')
        return {row["request_id"]: row for row in rows}

    def has_shadow():
        """Whether the worker that answers has one: each follows by itself."""
        rig.predict(workers)
        return shadow_rows() != {}

    rig.promote(served.second, role="shadow")
    wait_until("a shadow", has_shadow)
    answers = [rig.predict(workers, key).json() for key in CUSTOMERS[:50]]
    assert {answer["model_version"] for answer in answers} == {served.first}
    ids = {answer["request_id"] for answer in answers}
    wait_until("its rows", lambda: ids <= shadow_rows().keys())
    rows = shadow_rows()
    for answer in answers:
        row = rows[answer["request_id"]]
        assert row["version"] == served.second
        assert row["entity"] == str(answer["customer_id"])


@pytest.mark.journey
def test_production_answers_where_a_challenger_fails_and_failures_are_counted(
    rig, served, workers
):
    """It gives a probability for the defaults, so it is loaded, and none for other customers."""
    bias = rig.features["days_since_last_order"] * 0.01
    model = tiny_onnx(bias, "Sqrt", weight=-0.01)
    version = rig.register(0, model=model).version
    rig.promote(version, role="challenger")

    def failures():
        name = f'gyre_prediction_failures_total{{model="{rig.spec.name}",role="challenger",'
        return counted(workers, name)

    # Either worker may have it first, and the connection is to one of them.
    wait_until("failures", lambda: ask_all(workers) and failures() > 0)
    versions = Counter(ask_all(workers).values())
    assert failures() >= versions[served.first] > 0
    rows = rig.rows()
    failed = [row for row in rows if row["version"] == version and "error" in row]
    production = {row["request_id"] for row in rows if row["version"] == served.first}
    assert {row["request_id"] for row in failed} <= production
    for row in failed:
        assert (row["role"], row["prediction"]) == ("challenger", None)
