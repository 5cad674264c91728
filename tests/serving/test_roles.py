"""Who answers: a challenger for its share of the customers, a shadow for nobody."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from onnx import TensorProto, helper

from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote, release
from mlflow_server.registry import Registry
from tests.conftest import unused_port, wait_until
from tests.faults.conftest import standing_still
from tests.serving.conftest import tiny_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

CUSTOMERS = range(1, 1001)
PERCENT = 10


def give(rig: Any, version: str, role: str, percent: int = 100) -> None:
    ledger = Ledger(rig.settings)
    promote(Registry(rig.settings), ledger, rig.spec.name, version, who="test", why="a trial",
            role=role, percent=percent)  # fmt: skip
    ledger.close()


def end(rig: Any, role: str) -> None:
    ledger = Ledger(rig.settings)
    release(Registry(rig.settings), ledger, rig.spec.name, role, who="test", why="over")
    ledger.close()


def wait_for_production(rig: Any, client: httpx.Client, version: str) -> None:
    """Wait until the worker that answers has `version` in production, and no trial."""

    def has_production_only() -> bool:
        status = client.get("/status").json()
        roles: dict[str, str] = status["models"][rig.spec.name]["versions"]
        return roles == {"production": version}

    wait_until("no trial", has_production_only)


def ask_all(client: httpx.Client) -> dict[int, str]:
    """Who answered each customer."""
    body = [{"customer_id": key} for key in CUSTOMERS]
    answer = client.post("/predict/batch", json=body)
    assert answer.status_code == 200, answer.text
    return {row["customer_id"]: row["model_version"] for row in answer.json()}


@pytest.fixture(scope="module")
def two_workers(rig: Any, served: Any) -> Iterator[httpx.Client]:
    server = rig.serving(
        home=rig.home_beside(), serving_port=unused_port(), serving_workers=2
    )
    with server as (client, _):
        rig.known_to_be_ready(client)
        yield client


@pytest.fixture
def workers(rig: Any, served: Any, two_workers: httpx.Client) -> Iterator[httpx.Client]:
    """A server of two workers; afterwards nobody is on trial."""
    yield two_workers
    for role in ("challenger", "shadow"):
        if role in Registry(rig.settings).aliases(rig.spec.name):
            end(rig, role)
    wait_until("no trial", lambda: set(ask_all(two_workers).values()) == {served.first})
    wait_for_production(rig, served.client, served.first)


def test_a_challenger_answers_its_share_of_the_customers_always_the_same_ones(
    rig: Any, served: Any, workers: httpx.Client
) -> None:
    def challenged() -> set[int]:
        versions = ask_all(workers).items()
        return {key for key, version in versions if version == served.second}

    give(rig, served.second, "challenger", PERCENT)
    wait_until("a challenger", challenged)
    # A poll may see the alias before the ledger's percent; and each worker follows by itself.
    wait_until("both", lambda: len({str(ask_all(workers)) for _ in range(6)}) == 1)
    customers = challenged()
    assert 60 < len(customers) < 140  # four standard deviations
    body = {"customer_id": min(customers)}
    for request in (body, body | {"features": rig.features}):
        answer = workers.post("/predict", json=request)
        assert answer.json()["model_version"] == served.second
        assert rig.row_of(answer)["role"] == "challenger"
    give(rig, served.second, "challenger", 50)
    wait_until("half", lambda: len(challenged()) > 400)
    assert customers < challenged()  # who had the challenger keeps it
    end(rig, "challenger")
    wait_until("an end", lambda: not challenged())


def test_a_shadow_scores_what_production_answers_and_answers_nobody(
    rig: Any, served: Any, workers: httpx.Client
) -> None:
    def shadow_rows() -> dict[str, dict[str, Any]]:
        rows = [row for row in rig.rows() if row["role"] == "shadow"]
        return {row["request_id"]: row for row in rows}

    def has_shadow() -> bool:
        """Whether the worker that answers has one: each follows by itself."""
        rig.predict(workers)
        return shadow_rows() != {}

    give(rig, served.second, "shadow")
    wait_until("a shadow", has_shadow)
    answers = [rig.predict(workers, key).json() for key in CUSTOMERS[:50]]
    ids = {answer["request_id"] for answer in answers}
    assert {answer["model_version"] for answer in answers} == {served.first}
    wait_until("its rows", lambda: ids <= shadow_rows().keys())
    rows = shadow_rows()
    for answer in answers:
        row = rows[answer["request_id"]]
        assert row["version"] == served.second
        assert row["entity"] == str(answer["customer_id"])


def test_what_a_challenger_fails_at_is_answered_by_production_and_counted(
    rig: Any, served: Any, workers: httpx.Client
) -> None:
    """It gives a probability for the defaults, so it is loaded, and none for other customers."""
    model = tiny_onnx(rig.features["days_since_last_order"] * 0.01, score="Sqrt")
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1], [-0.01])
    model.graph.initializer[0].CopyFrom(weight)
    version = rig.register(0, model=model).version
    give(rig, version, "challenger", 100)
    labels = f'model="{rig.spec.name}",role="challenger",'

    def failures() -> list[float]:
        lines = workers.get("/metrics").text.splitlines()
        metric = f"gyre_prediction_failures_total{{{labels}"
        return [float(line.split()[-1]) for line in lines if line.startswith(metric)]

    # Either worker may have it first, and the connection is to one of them.
    wait_until("failures", lambda: ask_all(workers) and failures())
    answers = ask_all(workers)
    versions = Counter(answers.values())
    assert sum(failures()) >= versions[served.first] > 0
    rows = [row for row in rig.rows() if row["version"] == version and "error" in row]
    assert {row["role"] for row in rows} == {"challenger"}
    assert {row["prediction"] for row in rows} == {None}
    production = [row for row in rig.rows() if row["version"] == served.first]
    ids = {row["request_id"] for row in production}
    assert {row["request_id"] for row in rows} <= ids, "production answered them"


def test_requests_that_a_proxy_gave_one_id_are_answered_each_by_its_own_version(
    rig: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GYRE_BEHIND_PROXY", "true")
    home = rig.home_beside()
    give(rig, served.second, "challenger", 50)
    with rig.serving(home=home, serving_port=unused_port()) as (client, _):
        versions: dict[int, str] = {}

        def has_challenger() -> bool:
            versions.update(ask_all(client))
            return set(versions.values()) == {served.first, served.second}

        def ask(key: int) -> tuple[int, str]:
            body = {"customer_id": key}
            answer = client.post("/predict", json=body, headers={"x-request-id": "a"})
            row = answer.json()
            assert row["request_id"] == "a-0"
            return row["customer_id"], row["model_version"]

        wait_until("a challenger", has_challenger)
        keys = [*CUSTOMERS[:300]]
        with ThreadPoolExecutor(32) as threads:
            answers = [*threads.map(ask, keys)]
    end(rig, "challenger")
    wait_for_production(rig, served.client, served.first)
    assert answers == [(key, versions[key]) for key in keys]


def test_after_a_restart_the_version_before_is_loaded_and_the_way_back_fetches_nothing(
    rig: Any, served: Any
) -> None:
    home = rig.home_beside()
    log = rig.folder / "serving.log"
    before = rig.register(0.25).version
    loaded = f"version {before} is loaded"
    with standing_still(served.process):
        with rig.serving(home=home, serving_port=unused_port()) as (client, _):
            for version in (before, served.second):
                rig.promote(version)
                rig.answers_as(client, version)
        lines = log.read_text().count(loaded)
        with rig.serving(home=home, serving_port=unused_port()) as (client, _):
            rig.answers_as(client, served.second)
            wait_until("it", lambda: log.read_text().count(loaded) > lines)
            rig.promote(before)
            rig.answers_as(client, before)
        assert log.read_text().count(loaded) == lines + 1
        rig.promote(served.first)
    rig.answers_as(served.client, served.first)
