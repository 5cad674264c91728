"""Models whose bytes are those registered and that are broken all the same."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
from onnx import TensorProto, helper

from tests.conftest import wait_until
from tests.faults.test_console import console
from tests.serving.conftest import tiny_onnx
from tests.serving.load import under_load

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx


def no_probability() -> onnx.ModelProto:
    """Logarithm of a negative number: NaN."""
    return tiny_onnx(-5.0, score="Log")


def other_inputs() -> onnx.ModelProto:
    model = tiny_onnx(1.0)
    model.graph.input[0].name = "shoe_size"
    return model


def fails_at_its_first_call() -> onnx.ModelProto:
    """Wants seven rows, whatever it is given."""
    model = tiny_onnx(1.0)
    nodes = model.graph.node
    nodes[-1].input[0] = "seven"
    nodes.insert(3, helper.make_node("Reshape", ["sum", "shape"], ["seven"]))
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [7])
    model.graph.initializer.append(shape)
    return model


BROKEN = {
    no_probability: "ModelRefusedError: model.onnx: the defaults score [nan], not a probability",
    other_inputs: "ValueError: Required inputs",
    fails_at_its_first_call: "Fail: ",
}


@contextmanager
def watched(client: httpx.Client) -> Iterator[set[bool]]:
    """Collect whether the server was ready, or not for Redis alone, until the block ends."""
    readiness: set[bool] = set()
    ended = threading.Event()

    def watch():
        with httpx.Client(base_url=client.base_url, timeout=60) as watcher:
            while not ended.wait(0.05):
                status = watcher.get("/status").json()
                # Redis takes longer than its 50 ms now and then on a busy machine.
                is_redis_up = status["resources"]["redis"]["ok"]
                readiness.add(status["ready"] or not is_redis_up)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield readiness
    finally:
        ended.set()
        watching.join()


def test_broken_models_promoted_under_load_are_refused_and_no_request_fails(
    rig, served
):
    """4: the old version stays, and the server ready; log, metric and one alert report it."""
    client = served.client
    with (
        console(rig),
        watched(client) as readiness,
        under_load(client) as answers,
    ):
        for make, reason in BROKEN.items():
            check_that_it_is_refused(rig, served, make(), reason)
            count = len(answers) + 50
            wait_until("more answers", lambda count=count: len(answers) > count)
        rig.promote(served.first)
        wait_until(
            "no refusal", lambda: "is refused:" not in client.get("/status").text
        )
    assert readiness == {True}
    assert {(a.status, a.version) for a in answers} == {(200, served.first)}


def check_that_it_is_refused(rig, served, model, reason):
    """Promote a version of `model`, and look at what is said about it."""
    client = served.client
    version = rig.register(1.0, model=model).version
    refusal = f"version {version} is refused: {reason}"
    before = refusals(client, rig.spec.name)
    rig.promote(version)
    wait_until(refusal, lambda: refusal in client.get("/status").text)
    assert refusals(client, rig.spec.name) == before + 1
    lines = (rig.folder / "serving.log").read_text().splitlines()
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    text = f"{rig.spec.name}: {refusal}"
    levels = [entry["level"] for entry in entries if text in entry["message"]]
    assert levels == ["ERROR"]
    wait_until("an alert", lambda: alerts(rig, version))
    (alert,) = alerts(rig, version)
    assert f"version {served.first} answers; {refusal}" in alert["message"]


def alerts(rig, version):
    path = rig.settings.home / "logs" / "alerts.log"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["cause"] == f"version {version} is refused"]


def refusals(client: httpx.Client, model: str) -> float:
    """Return `gyre_model_refused_total` of the model."""
    name = f'gyre_model_refused_total{{model="{model}"}} '
    lines = client.get("/metrics").text.splitlines()
    values = [line.removeprefix(name) for line in lines if line.startswith(name)]
    return float(values[0]) if values else 0.0
