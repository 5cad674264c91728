"""Models whose bytes are those registered and that are broken all the same."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import onnx
from onnx import TensorProto, helper

from mlflow_server.records import Records
from tests.conftest import unused_port, wait_until
from tests.faults.conftest import standing_still
from tests.mlflow_server.test_alerts import Webhook, receiving
from tests.serving.conftest import tiny_onnx
from tests.serving.load import under_load

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


def no_probability() -> onnx.ModelProto:
    """Logarithm of a negative number: NaN."""
    return tiny_onnx(-5.0, score="Log")


def other_inputs() -> onnx.ModelProto:
    made = tiny_onnx(1.0)
    made.graph.input[0].name = "shoe_size"
    return made


def fails_at_its_first_call() -> onnx.ModelProto:
    """Wants seven rows, whatever it is given."""
    made = tiny_onnx(1.0)
    made.graph.node[-1].input[0] = "seven"
    made.graph.node.insert(3, helper.make_node("Reshape", ["sum", "shape"], ["seven"]))
    made.graph.initializer.append(
        helper.make_tensor("shape", TensorProto.INT64, [1], [7])
    )
    return made


def an_operator_nobody_knows() -> onnx.ModelProto:
    made = tiny_onnx(1.0)
    made.graph.node[0].domain = "nowhere"
    made.opset_import.append(helper.make_opsetid("nowhere", 1))
    return made


BROKEN = {
    no_probability: "ModelRefusedError: model.onnx: the defaults score [nan], not a probability",
    other_inputs: "ModelRefusedError: model.onnx: inputs are",
    fails_at_its_first_call: "Fail: ",
    an_operator_nobody_knows: "Fail: ",
}


@contextmanager
def watched(client: httpx.Client) -> Iterator[set[bool]]:
    """Whether `/health/ready` said yes, or no for Redis alone, until the block ends."""
    seen: set[bool] = set()
    ended = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            while not ended.wait(0.05):
                answer = own.get("/health/ready").json()
                # Redis takes longer than its 50 ms now and then on a busy machine.
                seen.add(answer["ready"] or not answer["resources"]["redis"]["ok"])

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        ended.set()
        watching.join()


def test_broken_models_promoted_under_load_are_refused_and_nobody_notices(
    rig: Any, served: Any
) -> None:
    """4: no request fails, the old version stays, ready stays true; log, metric and alert tell."""
    client = served.client
    with watched(client) as readiness, under_load(client) as answers:
        for make, reason in BROKEN.items():
            is_refused(rig, served, make(), reason)
            before = len(answers)
            rig.wait_until("more answers", lambda n=before: len(answers) > n + 50)
        rig.promote(served.first)
        rig.wait_until(
            "no refusal", lambda: "refused" not in client.get("/health/ready").text
        )
    assert readiness == {True}
    assert {(a.status, a.version) for a in answers} == {(200, served.first)}


def is_refused(rig: Any, served: Any, model: onnx.ModelProto, reason: str) -> None:
    """Promote a version of `model`, and look at what is told of it."""
    client, version = served.client, rig.register(1.0, model=model).version
    before, said = (
        refused(client, rig.spec.name),
        f"version {version} is refused: {reason}",
    )
    rig.promote(version)
    rig.wait_until(said, lambda: said in client.get("/health/ready").text)
    assert refused(client, rig.spec.name) == before + 1
    lines = [json.loads(line) for line in (rig.folder / "serving.log").read_text().splitlines()
             if line.startswith("{")]  # fmt: skip
    told = [
        line["level"] for line in lines if f"{rig.spec.name}: {said}" in line["message"]
    ]
    assert told == ["ERROR"]
    wait_until("an alert", lambda: alerts(rig, version) != [])
    (alert,) = alerts(rig, version)
    assert f"version {served.first} answers; {said}" in alert["message"]


def alerts(rig: Any, version: str) -> list[dict[str, str]]:
    path = rig.settings.home / "logs" / "alerts.log"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["cause"] == f"version {version} is refused"]


class Slow(Webhook):
    """Answers, but not in the time in which a promotion is followed."""

    def do_POST(self) -> None:  # noqa: N802  (Python's name for it)
        time.sleep(3)
        super().do_POST()


def test_of_two_workers_one_alerts_and_a_slow_receiver_holds_up_neither(
    rig: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4: nor does a receiver that is not there at all."""
    version, good = (
        rig.register(1.0, model=other_inputs()).version,
        rig.register(0.75).version,
    )
    said = f"version {version} is refused"
    with (
        receiving(ThreadingHTTPServer, Slow) as (port, received),
        ExitStack() as opened,
    ):
        opened.enter_context(standing_still(served.process))  # it would be the third
        urls = f"json://127.0.0.1:{port} json://127.0.0.1:{unused_port()}"
        monkeypatch.setenv("GYRE_ALERT_URLS", urls)
        ports = (unused_port(), unused_port())
        workers = [
            opened.enter_context(
                rig.serving(home=rig.home_beside(), serving_port=each)
            )[0]
            for each in ports
        ]
        for client in workers:
            rig.known_to_be_ready(client)
        rig.promote(version)
        for client in workers:
            rig.wait_until(said, lambda c=client: said in c.get("/health/ready").text)
        rig.promote(good)
        for client in workers:
            rig.answers_as(client, good)
        with closing(Records(rig.settings)) as records:

            def both_told() -> bool:
                rows = [
                    row for row in records.alerts(rig.spec.name) if row["cause"] == said
                ]
                return [row["delivered"] for row in rows] == [True] and rows[0][
                    "count"
                ] >= len(workers)

            rig.wait_until("an alert", both_told)
        rig.promote(served.first)
    rig.answers_as(served.client, served.first)
    (alert,) = received
    assert said in alert["message"]


def refused(client: httpx.Client, model: str) -> float:
    """`gyre_model_refused_total` of the model."""
    name = f'gyre_model_refused_total{{model="{model}"}} '
    found = [m for m in client.get("/metrics").text.splitlines() if m.startswith(name)]
    return float(found[0].removeprefix(name)) if found else 0.0
