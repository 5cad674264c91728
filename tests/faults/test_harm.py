"""A version that harms by errors or by its time goes back by itself, once, and stays back.

By a collapse of its scores: test_loop.py. By a worse F1: tests/monitoring/test_monitor.py.
What is slow: tests/monitoring/test_harm.py.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlflow_server.ledger import Ledger
from monitoring.decision_log import newest_decisions
from monitoring.monitor import monitor
from tests.conftest import at_most, wait_until
from tests.serving.conftest import tiny_onnx

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from mlflow_server.ledger import LedgerRow

ENOUGH = 110
SLOW_SECONDS = 0.03


def fails_for_some() -> onnx.ModelProto:
    """Logarithm of 0.01 · days_since_last_order + 0.89: a probability of the defaults' 12 days, and
    none of more than 182, which most customers have.
    """
    return tiny_onnx(0.89, score="Log")


def takes_its_time() -> onnx.ModelProto:
    """Multiplies large matrices before it answers as any other."""
    model = tiny_onnx(-1.0)
    graph = model.graph
    graph.node[-1].input[0] = "late"
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1e-3])
    for node in (
        helper.make_node("ConstantOfShape", ["shape"], ["matrix"], value=value),
        helper.make_node("ReduceMax", ["sum"], ["most"], keepdims=0),
        helper.make_node("Mul", ["matrix", "most"], ["moved"]),
        helper.make_node("MatMul", ["moved", "matrix"], ["square"]),
        helper.make_node("MatMul", ["square", "moved"], ["cube"]),
        helper.make_node("ReduceMax", ["cube"], ["peak"], keepdims=0),
        helper.make_node("Mul", ["peak", "nothing"], ["zero"]),
        helper.make_node("Add", ["sum", "zero"], ["late"]),
    ):
        graph.node.insert(len(graph.node) - 1, node)
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [slow_size()] * 2)
    nothing = helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0])
    graph.initializer.extend([shape, nothing])
    return model


def slow_size() -> int:
    """Rows of a matrix whose product with itself takes at least SLOW_SECONDS on this machine."""
    size = 500
    seconds = 0.0
    while seconds < SLOW_SECONDS:
        size += size // 4
        matrix = np.full((size, size), 1e-3, np.float32)
        start = time.monotonic()
        _ = matrix @ matrix
        seconds = time.monotonic() - start
    return size


def ask(client: httpx.Client) -> list[bool]:
    """Whether each of so many customers got an answer."""
    bodies = [{"customer_id": 1 + number} for number in range(ENOUGH)]
    return [client.post("/predict", json=body).is_success for body in bodies]


@pytest.mark.timed
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (fails_for_some, "{failed} of {asked} predictions failed, at most 5.0% is"),
        # It is held against the time of others, which a busy machine lengthens.
        pytest.param(
            takes_its_time,
            "predictions are slow: 50 % of requests within ",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_version_that_fails_or_is_slow_goes_back_within_ten_seconds_and_stays_back(
    rig: Any,
    served: Any,
    model: Callable[[], onnx.ModelProto],
    words: str,
) -> None:
    """19."""
    assert all(ask(served.client))
    version = rig.register(1.0, model=model()).version
    rig.promote(version)
    wait_until(
        f"version {version}",
        lambda: f"version {version} answers" in served.client.get("/status").text,
    )
    answers = ask(served.client)
    assert all(answers) is (model is takes_its_time)

    with ThreadPoolExecutor(1) as executor:
        run = executor.submit(monitor, rig.settings, rig.spec, datetime.now(UTC))
        wait_until("a verdict", lambda: last_decision(rig)[1:] == ("rollback", "harm"))
        verdict = time.monotonic()
        rig.answers_as(served.client, served.first)
        seconds = time.monotonic() - verdict
        report = run.result()
    assert seconds <= at_most(10)
    assert (report.version, report.decision.action) == (version, "rollback")
    failed = answers.count(False)
    beginning = words.format(failed=failed, asked=ENOUGH)
    assert report.decision.reason.startswith(beginning)
    row = ledger_rows(rig)[-1]
    assert (row.from_version, row.to_version) == (version, served.first)
    assert (row.who, row.action) == ("monitor", "automatic rollback")
    assert row.why == report.decision.reason
    assert row.applied_at
    (alert,) = harm_alerts(rig, version)
    assert (alert["drift_type"], alert["severity"]) == ("harm", "critical")

    rows = ledger_rows(rig)
    again = monitor(rig.settings, rig.spec, datetime.now(UTC))
    assert (again.version, again.decision.action) == (served.first, "nothing")
    assert ledger_rows(rig) == rows, "ping-pong"
    assert len(harm_alerts(rig, version)) == 1


def last_decision(rig: Any) -> tuple[str, str, str]:
    rows = newest_decisions(rig.settings, rig.spec.name, 1)
    return (rows[0].version, rows[0].action, rows[0].rule) if rows else ("", "", "")


def ledger_rows(rig: Any) -> list[LedgerRow]:
    with closing(Ledger(rig.settings)) as opened:
        return opened.rows(rig.spec.name)


def harm_alerts(rig: Any, version: str) -> list[dict[str, Any]]:
    lines = (rig.settings.home / "logs" / "alerts.log").read_text().splitlines()
    alerts = [json.loads(line) for line in lines]
    beginning = f"harm of version {version} "
    return [alert for alert in alerts if alert["cause"].startswith(beginning)]
