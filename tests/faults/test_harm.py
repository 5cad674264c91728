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
from mlflow_server.records import Records
from monitoring.monitor import monitor
from tests.conftest import at_most, wait_until
from tests.serving.conftest import tiny_onnx

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from mlflow_server.ledger import LedgerRow

ENOUGH, SLOW_SECONDS = 110, 0.03


def fails_for_some() -> onnx.ModelProto:
    """Logarithm of 0.01 · days_since_last_order + 0.89: a probability of the defaults' 12 days, and
    none of more than 182, which most customers have.
    """
    return tiny_onnx(0.89, score="Log")


def takes_its_time() -> onnx.ModelProto:
    """Multiplies large matrices before it answers as any other."""
    made = tiny_onnx(-1.0)
    made.graph.node[-1].input[0] = "late"
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
        made.graph.node.insert(len(made.graph.node) - 1, node)
    sizes = [slow_size()] * 2
    made.graph.initializer.append(
        helper.make_tensor("shape", TensorProto.INT64, [2], sizes)
    )
    made.graph.initializer.append(
        helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0])
    )
    return made


def slow_size() -> int:
    """Rows of a matrix whose product with itself takes at least SLOW_SECONDS on this machine."""
    size, took = 500, 0.0
    while took < SLOW_SECONDS:
        size += size // 4
        matrix = np.full((size, size), 1e-3, np.float32)
        began = time.monotonic()
        _ = matrix @ matrix
        took = time.monotonic() - began
    return size


def ask(client: httpx.Client) -> list[bool]:
    """Whether each of so many customers got an answer."""
    bodies = [{"customer_id": 1 + n} for n in range(ENOUGH)]
    return [client.post("/predict", json=body).is_success for body in bodies]


@pytest.mark.timed
@pytest.mark.parametrize(
    ("model", "says"),
    [
        (fails_for_some, "{failed} of {asked} predictions failed"),
        # It is held against the time of others, which a busy machine lengthens.
        pytest.param(
            takes_its_time,
            "predictions are slow: half within ",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_version_that_fails_or_is_slow_goes_back_within_ten_seconds_and_stays_back(
    rig: Any,
    served: Any,
    model: Callable[[], onnx.ModelProto],
    says: str,
) -> None:
    """19."""
    assert all(ask(served.client))
    version = rig.register(1.0, model=model()).version
    rig.promote(version)
    wait_until(
        f"version {version}",
        lambda: f"version {version} answers" in served.client.get("/health/ready").text,
    )
    answered = ask(served.client)
    assert all(answered) is (model is takes_its_time)

    with ThreadPoolExecutor(1) as beside:
        look = beside.submit(monitor, rig.settings, rig.spec, datetime.now(UTC))
        wait_until("a verdict", lambda: decided(rig) == (version, "rollback", "harm"))
        verdict = time.monotonic()
        rig.answers_as(served.client, served.first)
        took = time.monotonic() - verdict
        found = look.result()
    assert took <= at_most(10)
    assert (found.version, found.decision.action) == (version, "rollback")
    failed = answered.count(False)
    assert found.decision.reason.startswith(says.format(failed=failed, asked=ENOUGH))
    last = ledger(rig)[-1]
    assert (last.from_version, last.to_version, last.who) == (
        version,
        served.first,
        "monitor",
    )
    assert last.why == found.decision.reason
    assert last.applied_at
    (alert,) = told(rig, version)
    assert (alert["drift_type"], alert["severity"]) == ("harm", "critical")

    before = ledger(rig)
    again = monitor(rig.settings, rig.spec, datetime.now(UTC))
    assert (again.version, again.decision.action) == (served.first, "nothing")
    assert ledger(rig) == before, "ping-pong"
    assert len(told(rig, version)) == 1


def decided(rig: Any) -> tuple[str, str, str] | None:
    with closing(Records(rig.settings)) as records:
        rows = records.decisions(rig.spec.name, 1)
    return (rows[0].version, rows[0].action, rows[0].rule) if rows else None


def ledger(rig: Any) -> list[LedgerRow]:
    with closing(Ledger(rig.settings)) as opened:
        return opened.rows(rig.spec.name)


def told(rig: Any, version: str) -> list[dict[str, Any]]:
    lines = (rig.settings.home / "logs" / "alerts.log").read_text().splitlines()
    return [
        row
        for row in map(json.loads, lines)
        if row["cause"].startswith(f"harm of version {version} ")
    ]
