"""Who answers: a challenger for its share of the customers, a shadow for nobody."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from onnx import TensorProto, helper

from core.settings import PROJECT
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote, release
from mlflow_server.registry import Registry
from serving.model import ORIGIN_FILE, LocalCopies
from stack.environment import process_environment
from tests.conftest import unused_port, wait_until
from tests.serving.conftest import tiny_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def ask_all(client: httpx.Client) -> dict[int, str]:
    """Who answered each customer."""
    body = [{"customer_id": key} for key in CUSTOMERS]
    answer = client.post("/predict/batch", json=body)
    assert answer.status_code == 200, answer.text
    return {row["customer_id"]: row["model_version"] for row in answer.json()}


@pytest.fixture(scope="module")
def workers(rig: Any, served: Any) -> Iterator[httpx.Client]:
    """A server of two workers."""
    with rig.serving(
        home=rig.home_beside(), serving_port=unused_port(), serving_workers=2
    ) as (
        client,
        _,
    ):
        rig.known_to_be_ready(client)
        yield client


@pytest.fixture
def alone(rig: Any, served: Any, workers: httpx.Client) -> Iterator[httpx.Client]:
    """The two workers; afterwards nobody is on trial."""
    yield workers
    for role in ("challenger", "shadow"):
        if role in Registry(rig.settings).aliases(rig.spec.name):
            end(rig, role)
    wait_until("no trial", lambda: set(ask_all(workers).values()) == {served.first})


def test_a_challenger_answers_its_share_of_the_customers_always_the_same_ones(
    rig: Any, served: Any, alone: httpx.Client
) -> None:
    give(rig, served.second, "challenger", PERCENT)
    wait_until("a challenger", lambda: len(set(ask_all(alone).values())) == 2)
    # A poll may see the alias before the ledger's percent; and each worker follows by itself.
    wait_until("both", lambda: len({str(ask_all(alone)) for _ in range(6)}) == 1)
    first = ask_all(alone)
    chosen = {key for key, version in first.items() if version == served.second}
    assert set(first.values()) == {served.first, served.second}
    assert (
        0.06 * len(first) < len(chosen) < 0.14 * len(first)
    )  # four standard deviations
    assert [ask_all(alone) == first for _ in range(4)] == [
        True
    ] * 4  # whichever worker answers
    one = alone.post("/predict", json={"customer_id": min(chosen)}).json()
    assert one["model_version"] == served.second
    given = alone.post(
        "/predict", json={"customer_id": min(chosen), "features": rig.features}
    )
    assert given.json()["model_version"] == served.second
    roles = Counter((row["role"], row["version"]) for row in rig.rows()[-len(first) :])
    assert set(roles) <= {("production", served.first), ("challenger", served.second)}
    assert roles["challenger", served.second] >= len(chosen)
    give(rig, served.second, "challenger", 50)
    wait_until("half", lambda: Counter(ask_all(alone).values())[served.second] > 400)
    more = {key for key, version in ask_all(alone).items() if version == served.second}
    assert chosen < more  # who had the challenger keeps it
    end(rig, "challenger")
    wait_until("an end", lambda: set(ask_all(alone).values()) == {served.first})


def test_a_shadow_scores_what_production_answers_and_answers_nobody(
    rig: Any, served: Any, alone: httpx.Client
) -> None:
    def ask(key: int) -> dict[str, Any]:
        answer: dict[str, Any] = alone.post(
            "/predict", json={"customer_id": key}
        ).json()
        return answer

    def shadowed(*customers: int) -> list[Any]:
        keys = {str(key) for key in customers}
        return [
            row
            for row in rig.rows()
            if row["role"] == "shadow" and row["entity"] in keys
        ]

    def has_shadow() -> bool:
        """Whether the worker that answers has one: each follows by itself."""
        ask(CUSTOMERS[-1])
        return shadowed(CUSTOMERS[-1]) != []

    give(rig, served.second, "shadow")
    wait_until("a shadow", has_shadow)
    answers = [ask(key) for key in CUSTOMERS[:50]]
    assert {answer["model_version"] for answer in answers} == {served.first}
    wait_until("its rows", lambda: len(shadowed(*CUSTOMERS[:50])) == len(answers))
    rows = shadowed(*CUSTOMERS[:50])
    assert {row["version"] for row in rows} == {served.second}
    assert {row["entity"] for row in rows} == {str(a["customer_id"]) for a in answers}
    assert not {row["request_id"] for row in rows} & {a["request_id"] for a in answers}


def test_what_a_challenger_fails_at_is_answered_by_production_and_counted(
    rig: Any, served: Any, alone: httpx.Client
) -> None:
    """It gives a probability for the defaults, so it is loaded, and none for other customers."""
    version = rig.register(0, model=only_for_the_defaults(rig)).version
    give(rig, version, "challenger", 100)
    failed = (
        f'gyre_prediction_failures_total{{model="{rig.spec.name}",role="challenger",'
    )

    def counted() -> list[str]:
        return [
            x for x in alone.get("/metrics").text.splitlines() if x.startswith(failed)
        ]

    # Either worker may have it first, and the connection is to one of them.
    wait_until("failures", lambda: ask_all(alone) and counted())
    answers = ask_all(alone)
    assert served.first in answers.values()
    assert float(counted()[0].split()[-1]) >= Counter(answers.values())[served.first]


def only_for_the_defaults(rig: Any) -> Any:
    """score = sqrt(days as in the defaults less days): NaN for who bought longer ago."""
    made = tiny_onnx(rig.features["days_since_last_order"] * 0.01, score="Sqrt")
    made.graph.initializer[0].CopyFrom(
        helper.make_tensor("weight", TensorProto.FLOAT, [1], [-0.01])
    )
    return made


def test_the_way_back_takes_no_loading(
    rig: Any, served: Any, alone: httpx.Client
) -> None:
    """The version before is warm: no worker loads it again."""

    def lines(what: str) -> int:
        return (rig.folder / "serving.log").read_text().count(what)

    def swapped(version: str) -> None:
        """Promote it; all three workers answer with it."""
        before = lines(f"version {version} answers")
        rig.promote(version)
        wait_until("swaps", lambda: lines(f"version {version} answers") >= before + 3)

    swapped(served.second)
    before = lines(f"version {served.first} is loaded")
    swapped(served.first)
    assert lines(f"version {served.first} is loaded") == before > 0
    for client in (alone, served.client):
        rig.answers_as(client, served.first)


def test_production_is_fetched_before_the_version_that_it_replaced(
    rig: Any, served: Any, tmp_path: Path
) -> None:
    """A new machine answers with production at once, and not with what has an older number."""
    assert int(served.first) < int(served.second)
    rig.promote(served.second)
    try:
        rig.answers_as(served.client, served.second)
        settings = rig.settings.model_copy(update={"home": tmp_path / "home"})
        (settings.home / "serving").mkdir(parents=True)
        subprocess.run(
            [sys.executable, "-m", "serving.fetch"],
            cwd=PROJECT,
            env=process_environment(settings),
            check=True,
        )
        copies = LocalCopies(settings, rig.spec.name)
        made = [
            (copies.path(version) / ORIGIN_FILE).stat().st_mtime_ns
            for version in (served.second, served.first)
        ]
        assert made == sorted(made)
    finally:
        rig.promote(served.first)
        rig.answers_as(served.client, served.first)
