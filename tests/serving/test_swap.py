"""Promotions, good and bad, while requests are under way."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from mlflow_server.ledger import Ledger
from mlflow_server.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def under_load(client: httpx.Client, workers: int = 2) -> Iterator[list[tuple[float, int, str]]]:
    """Requests without pause; what came back: (time, status, version)."""
    answers: list[tuple[float, int, str]] = []
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=client.base_url, timeout=10) as own:
            while not stop.is_set():
                answer = own.post("/predict", json={"customer_id": 4})
                version = str(answer.json().get("model_version"))
                answers.append((time.monotonic(), answer.status_code, version))

    threads = [threading.Thread(target=load) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_promotions_swap_within_5_s_and_no_request_fails(rig: Any, served: Any) -> None:
    with under_load(served.client) as answers:
        for version in (served.second, served.first, served.second, served.first):
            rig.promote(version)
            promoted = time.monotonic()
            rig.answers_as(served.client, version)
            swapped = time.monotonic()
            assert swapped - promoted < 5
    assert {status for _, status, _ in answers} == {200}
    assert {version for _, _, version in answers} == {served.first, served.second}


def test_an_altered_artifact_is_refused_and_the_old_version_stays(rig: Any, served: Any) -> None:
    version = rig.register(1.0).version
    stored = (rig.settings.home / "mlflow" / "artifacts").rglob("model.onnx")
    artifact = max(stored, key=lambda path: path.stat().st_mtime)
    whole = artifact.read_bytes()
    artifact.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with under_load(served.client) as answers:
        rig.promote(version)
        refusal = f"version {version} is refused: ModelRefusedError: model.onnx: sha256 is"
        rig.wait_until(
            "the refusal", lambda: refusal in served.client.get("/health/ready").text, 10
        )
        assert served.client.get("/health/ready").status_code == 200
        artifact.unlink()
        missing = f"version {version} is refused: RegistryError"
        rig.wait_until(
            "a later try", lambda: missing in served.client.get("/health/ready").text, 15
        )
    assert {(status, v) for _, status, v in answers} == {(200, served.first)}
    assert "gyre_model_refused_total" in served.client.get("/metrics").text
    rig.promote(served.first)
    rig.wait_until(
        "no refusal", lambda: "refused" not in served.client.get("/health/ready").text, 10
    )


def test_a_model_that_scores_no_probability_is_refused(rig: Any, served: Any) -> None:
    version = rig.register(1.0, score="Log").version  # log(0.12 + 1) is fine …
    broken = rig.register(-5.0, score="Log").version  # … log of a negative number is NaN
    rig.promote(broken)
    refusal = f"version {broken} is refused: ModelRefusedError: model.onnx: the defaults score"
    rig.wait_until("the refusal", lambda: refusal in served.client.get("/health/ready").text, 10)
    assert rig.predict(served.client).json()["model_version"] == served.first
    rig.promote(version)
    rig.answers_as(served.client, version)
    features = rig.features | {"days_since_last_order": -200}  # log(-2 + 1)
    answer = served.client.post("/predict", json={"customer_id": 4, "features": features})
    assert (answer.status_code, "nan" in answer.json()["detail"]) == (422, True)
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)


def test_an_alias_set_by_hand_is_served_and_written_down_as_outside(rig: Any, served: Any) -> None:
    registry, ledger = Registry(rig.settings), Ledger(rig.settings)
    registry.set_alias(rig.spec.name, "production", served.second)
    rig.answers_as(served.client, served.second)
    rig.wait_until("the row", lambda: ledger.rows(rig.spec.name)[-1].who == "outside", 5)
    assert ledger.rows(rig.spec.name)[-1].to_version == served.second
    ledger.close()
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)
