"""Models whose bytes are those registered and that are broken all the same."""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing, contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import onnx
from onnx import TensorProto, helper

from mlflow_server.alerts import Alerts
from serving.copies import LocalCopies
from tests.conftest import at_most, unused_port, wait_until
from tests.faults.conftest import standing_still, workers
from tests.faults.test_console import console
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
    other_inputs: "ValueError: Required inputs",
    fails_at_its_first_call: "Fail: ",
    an_operator_nobody_knows: "Fail: ",
}


@contextmanager
def watched(client: httpx.Client) -> Iterator[set[bool]]:
    """Whether the status said ready, or no for Redis alone, until the block ends."""
    seen: set[bool] = set()
    ended = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            while not ended.wait(0.05):
                answer = own.get("/status").json()
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
    with (
        console(rig),
        watched(client) as readiness,
        under_load(client) as answers,
    ):
        for make, reason in BROKEN.items():
            is_refused(rig, served, make(), reason)
            before = len(answers)
            rig.wait_until("more answers", lambda n=before: len(answers) > n + 50)
        rig.promote(served.first)
        rig.wait_until(
            "no refusal", lambda: "is refused:" not in client.get("/status").text
        )
    assert readiness == {True}
    assert {(a.status, a.version) for a in answers} == {(200, served.first)}


def is_refused(rig: Any, served: Any, model: onnx.ModelProto, reason: str) -> None:
    """Promote a version of `model`, and look at what is told of it."""
    client, version = served.client, rig.register(1.0, model=model).version
    before = refusals(client, rig.spec.name)
    said = f"version {version} is refused: {reason}"
    rig.promote(version)
    rig.wait_until(said, lambda: said in client.get("/status").text)
    assert refusals(client, rig.spec.name) == before + 1
    lines = [json.loads(line) for line in (rig.folder / "serving.log").read_text().splitlines()
             if line.startswith("{")]  # fmt: skip
    told = [
        line["level"] for line in lines if f"{rig.spec.name}: {said}" in line["message"]
    ]
    assert told == ["ERROR"]
    wait_until("an alert", lambda: alerts(rig, version) != [])
    (alert,) = alerts(rig, version)
    assert f"version {served.first} answers; {said}" in alert["message"]


def test_a_refused_version_leaves_nothing_and_is_not_downloaded_again(
    rig: Any, served: Any
) -> None:
    """29: a worker that starts knows it, too. It is tried again after ten minutes."""
    home = rig.home_beside()
    with (
        standing_still(served.process),
        rig.serving(home=home, serving_port=unused_port()) as (client, process),
    ):
        rig.answers_as(client, served.first)
        (worker,) = workers(process)
        counters = Path(worker.environ()["PROMETHEUS_MULTIPROC_DIR"])
        version = rig.register(1.0, model=other_inputs()).version
        rig.promote(version)
        said = f"version {version} is refused"
        rig.wait_until(said, lambda: said in client.get("/status").text)
        copies = LocalCopies(
            rig.settings.model_copy(update={"home": home}), rig.spec.name
        )
        refusal = copies.refusal(version)
        assert refusal is not None
        worker.kill()
        rig.wait_until("its end", lambda: not worker.is_running())
        rig.wait_until(said, lambda: answers_with(client, said))
        time.sleep(15)
        assert copies.refusal(version) == refusal
        folders = [path for path in copies.folder.iterdir() if path.is_dir()]
        assert version not in {path.name for path in folders}
        assert all(copies.origin(path.name) for path in folders)
        (next_worker,) = workers(process)
        pids = {path.stem.rpartition("_")[2] for path in counters.iterdir()}
        assert pids <= {str(process.pid), str(worker.pid), str(next_worker.pid)}
        rig.promote(served.first)


def answers_with(client: httpx.Client, said: str) -> bool:
    """Whether the status says it; no server answers while a worker starts."""
    try:
        return said in client.get("/status").text
    except httpx.TransportError:
        return False


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


def test_of_two_replicas_that_refuse_the_console_alerts_once(
    rig: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4: within 30 s, also if one receiver is slow, another absent, and a replica away."""
    version = rig.register(1.0, model=other_inputs()).version
    said = f"version {version} is refused"
    with (
        receiving(kind=ThreadingHTTPServer, handler=Slow) as (url, received),
        rig.serving(home=rig.home_beside(), serving_port=unused_port()) as (other, _),
    ):
        urls = f"{url} json://127.0.0.1:{unused_port()}"
        monkeypatch.setenv("GYRE_ALERT_URLS", urls)
        away = f"http://127.0.0.1:{unused_port()}"
        replicas = f"{away} {rig.settings.serving_address} {other.base_url}".rstrip("/")
        with console(rig, serving_url=replicas):
            rig.promote(version)
            for client in (served.client, other):
                rig.wait_until(said, lambda c=client: said in c.get("/status").text)
            refused = time.monotonic()
            wait_until("an alert", lambda: received)
            assert time.monotonic() - refused < at_most(30)
            with closing(Alerts(rig.settings)) as alerts:
                rows = alerts.rows(rig.spec.name, cause=said)
            rig.promote(served.first)
            rig.answers_as(served.client, served.first)
    (alert,) = received
    assert said in alert["message"]
    assert len(rows) == 1


def refusals(client: httpx.Client, model: str) -> float:
    """`gyre_model_refused_total` of the model."""
    name = f'gyre_model_refused_total{{model="{model}"}} '
    found = [m for m in client.get("/metrics").text.splitlines() if m.startswith(name)]
    return float(found[0].removeprefix(name)) if found else 0.0
