"""Faults of the loop on one real stack: a drift seen by many, too little to judge by, harm.

One story: a version of 180 days ago meets today's customers, twenty looks see the same drift, the
retraining makes the second version; of that one nothing is known yet; a third does harm.

Airflow looks once at a time, so of the twenty, eight are runs of its monitor and twelve are
`gyre monitor` in shells of their own, two of them at a time beside Airflow's: what is decided
between them is decided at once. Paused once its run has begun, the training DAG holds that run
back until all of them have looked.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from onnx import TensorProto, helper

from core.spec import load_spec
from feature_repo.datasets import load_dataset
from feature_repo.ingest import raw_table
from mlflow_server.alerts import Alerts
from mlflow_server.ledger import Ledger
from mlflow_server.pyfunc import ModelFile
from mlflow_server.registration import register
from mlflow_server.registry import Registry
from mlflow_server.served_model import CONTRACT_FILE, SCORE
from mlflow_server.tracking import Tracking
from monitoring.decision_log import newest_decisions
from stack.airflow_api import AirflowApi
from stack.environment import child_environment
from stack.processes import members
from tests.conftest import BIN, new_settings, wait_until
from tests.serving.conftest import ONNX_TYPES
from training.artifacts import EVALUATION, FRAME, PLAN, UNLABELLED, fetched
from training.dataset import load_frame
from training.frame import at, features

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from core.settings import Settings
    from mlflow_server.ledger import LedgerRow
    from mlflow_server.registry import Version
    from monitoring.decision_log import DecisionRow

SPEC = load_spec("customer_churn_model")
MODEL = SPEC.name
MONITOR, TRAIN = f"monitor_{MODEL}", f"train_{MODEL}"
AGE = timedelta(days=180)
IN_AIRFLOW, IN_SHELLS, SHELLS_AT_ONCE = 8, 12, 2
CHUNK = 10_000
FEW, ENOUGH = 150, 300
"""A window has a verdict from 200 entities."""

pytestmark = pytest.mark.nightly


class Loop:
    """A stack of its own, driven as a user drives it: HTTP, Airflow's API, `gyre`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counted: list[int] = []
        """Customers that the label is defined for, once all were asked for."""

    def gyre(self, *arguments: str, seconds: float = 400) -> str:
        own = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("GYRE_", "PROMETHEUS_"))
        }
        done = subprocess.run(
            [str(BIN / "gyre"), *arguments], env=own | child_environment(self.settings),
            capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip
        assert done.returncode == 0, f"gyre {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def predict(self, customers: Sequence[int]) -> list[dict[str, Any]]:
        url = f"{self.settings.serving_address}/predict/batch"
        answers: list[dict[str, Any]] = []
        for start in range(0, len(customers), CHUNK):
            rows = [{"customer_id": key} for key in customers[start : start + CHUNK]]
            answers += httpx.post(url, json=rows, timeout=60).raise_for_status().json()
        return answers

    def predict_all(self) -> None:
        raw = raw_table(self.settings, load_dataset(SPEC.dataset)).read()
        answers = self.predict(sorted(raw["customer_id"].unique().to_pylist()))
        self.counted = [row["customer_id"] for row in answers if row["in_population"]]

    def wait_for_answers_of(self, version: str, seconds: float = 10) -> None:
        """Wait without a prediction, which the monitor would count."""
        url, says = (
            f"{self.settings.serving_address}/status",
            f"version {version} answers",
        )
        wait_until(says, lambda: says in httpx.get(url, timeout=5).text, seconds)

    def pause(self, airflow: AirflowApi, dag: str, *, paused: bool = True) -> None:
        """Press the switch beside the DAG's name."""
        airflow._checked(
            airflow._send("PATCH", f"/dags/{dag}", json={"is_paused": paused})
        )

    def look(self) -> DecisionRow:
        """Run the monitor in Airflow; return what it decided."""
        with AirflowApi(self.settings) as airflow:
            run = airflow.follow(
                MONITOR, airflow.trigger(MONITOR, {}), lambda _: None, 120
            )
        as_of = datetime.fromisoformat(run["start_date"])
        return next(row for row in self.decisions() if row.as_of == as_of)

    def decisions(self) -> list[DecisionRow]:
        return newest_decisions(self.settings, MODEL)

    def alerts(self, cause: str | None = None) -> list[dict[str, Any]]:
        """Alerts as they are counted."""
        with closing(Alerts(self.settings)) as alerts:
            return [row for row in alerts.rows(MODEL) if cause in (None, row["cause"])]

    def delivered(self, cause: str | None = None) -> list[dict[str, Any]]:
        """Alerts that went out."""
        path = self.settings.home / "logs" / "alerts.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [row for row in map(json.loads, lines) if cause in (None, row["cause"])]

    def ledger(self) -> list[LedgerRow]:
        with closing(Ledger(self.settings)) as ledger:
            return ledger.rows(MODEL)

    def in_production(self) -> str | None:
        return Registry(self.settings).production(MODEL)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    settings = new_settings(tmp_path_factory.mktemp("loop") / "home", demo_start=None)
    made = Loop(settings)
    try:
        made.gyre("up", "--as-of", (datetime.now(UTC) - AGE).isoformat())
        yield made
    finally:
        made.gyre("down")
        assert members(settings.home) == [], "processes were left running"


def test_drift_seen_by_many_too_little_to_judge_by_and_harm(
    loop: Loop, tmp_path: Path
) -> None:
    the_same_drift_seen_by_twenty_looks_is_one_retraining_and_one_alert(loop)
    a_window_with_no_or_too_few_rows_has_no_verdict_and_nobody_is_told(loop)
    a_version_whose_scores_collapse_goes_back_once_and_stays_back(loop, tmp_path)


def the_same_drift_seen_by_twenty_looks_is_one_retraining_and_one_alert(
    loop: Loop,
) -> None:
    """18."""
    loop.predict_all()
    began = datetime.now(UTC)
    with (
        AirflowApi(loop.settings) as airflow,
        ThreadPoolExecutor(SHELLS_AT_ONCE) as shells,
    ):
        runs = [airflow.trigger(MONITOR, {}) for _ in range(IN_AIRFLOW)]
        by_hand = [shells.submit(loop.gyre, "monitor", MODEL) for _ in range(IN_SHELLS)]
        wait_until("a training", lambda: bool(training_runs(airflow, "running")), 240)
        loop.pause(airflow, TRAIN)
        for run in runs:
            airflow.follow(MONITOR, run, lambda _: None, 300)
        for shell in by_hand:
            shell.result(300)
        assert len(loop.ledger()) == 1, (
            "a look of the twenty came after the new version"
        )
        loop.pause(airflow, TRAIN, paused=False)
        going = ("queued", "running")
        wait_until(
            "the end of training", lambda: not training_runs(airflow, *going), 240
        )
        trained = training_runs(airflow)
        # Those of the clock and of promotions come among ours.
        others = {
            datetime.fromisoformat(run["start_date"])
            for kind in ("scheduled", "asset_triggered")
            for run in airflow.last_runs(MONITOR, 50, run_type=kind)
            if run["start_date"]
        }
        done = [{row["task_id"]: row["state"] for row in airflow.tasks(TRAIN, run["dag_run_id"])}
                for run in trained]  # fmt: skip

    looks = [
        row
        for row in loop.decisions()
        if row.as_of > began and row.version == "1" and row.as_of not in others
    ]
    cause = looks[0].cause
    assert cause == "drift of version 1"
    assert [(row.verdict, row.cause) for row in looks] == [("bad", cause)] * 20
    assert all("lifetime_orders: PSI" in row.reason for row in looks)
    assert {row.action for row in looks} <= {"alert", "retrain", "nothing"}

    assert {run["state"] for run in trained} == {"success"}, "a training failed"
    worked = [tasks for tasks in done if tasks["dataset"] == "success"]
    assert len(worked) == 1, f"one cause, one training: {done}"
    assert all(tasks["validate"] == "success" for tasks in done)
    tracked = [run for run in Tracking(loop.settings).runs(SPEC.experiment)
               if run.tags.get("cause", "").startswith(cause)]  # fmt: skip
    assert [run.status for run in tracked] == ["FINISHED"]
    assert [row.version for row in Registry(loop.settings).versions(MODEL)] == [
        "1",
        "2",
    ]
    first, second = loop.ledger()
    assert (first.to_version, second.from_version, second.to_version) == ("1", "1", "2")
    assert second.why.startswith(cause)

    (alert,), (told,) = loop.alerts(), loop.delivered()
    assert alert["cause"] == told["cause"] == cause
    # Those that saw less than two bad windows count only if one beside them had told by then.
    sure = len([row for row in looks if row.rule in {"drift", "cooldown"}])
    assert 20 - 1 - SHELLS_AT_ONCE <= sure <= alert["count"] <= 20, (
        "looks are counted, each once"
    )


def training_runs(airflow: AirflowApi, *states: str) -> list[dict[str, Any]]:
    """Trainings that something seen has started, in one of `states` (any, if none is given)."""
    rows = airflow.last_runs(TRAIN, 50, run_type="asset_triggered")
    return [row for row in rows if not states or row["state"] in states]


def signalled_looks(airflow: AirflowApi) -> int:
    """How many looks that a promotion has started are over."""
    kind = {"run_type": "asset_triggered", "state": "success"}
    return len(airflow.last_runs(MONITOR, 50, **kind))


def a_window_with_no_or_too_few_rows_has_no_verdict_and_nobody_is_told(
    loop: Loop,
) -> None:
    """16: of the second version, after whose snapshot no label has matured."""
    loop.wait_for_answers_of("2")
    loop.look()
    before = (loop.alerts(), loop.delivered(), loop.ledger())
    for entities in (0, FEW):
        if entities:
            assert {
                row["model_version"] for row in loop.predict(loop.counted[:FEW])
            } == {"2"}
        row = loop.look()
        assert (row.version, row.entities) == ("2", entities)
        assert (row.verdict, row.action, row.rule) == (
            "insufficient_data", "nothing", "insufficient_data",
        ), row.reason  # fmt: skip
    assert (loop.alerts(), loop.delivered(), loop.ledger()) == before


def a_version_whose_scores_collapse_goes_back_once_and_stays_back(
    loop: Loop, tmp_path: Path
) -> None:
    """19: put into production by a hand that asked no gate."""
    loop.predict(loop.counted)
    version = register_collapsing(loop.settings, tmp_path).version
    with AirflowApi(loop.settings) as airflow:
        looks = signalled_looks(airflow)
        loop.gyre("promote", MODEL, version, "--reason", "it looks good")
        wait_until("its look", lambda: signalled_looks(airflow) > looks, 120)
    loop.wait_for_answers_of(version)
    answers = loop.predict(loop.counted[:ENOUGH])
    assert {row["model_version"] for row in answers} == {version}
    assert len({row["probability"] for row in answers}) == 1
    before = loop.delivered()

    with AirflowApi(loop.settings) as airflow:
        run = airflow.trigger(MONITOR, {})
        wait_until("a verdict", lambda: loop.decisions()[-1].version == version, 120)
        verdict = time.monotonic()
        wait_until("the way back", lambda: loop.in_production() == "2", 10)
        loop.wait_for_answers_of("2", 10 - (time.monotonic() - verdict))
        states = airflow.follow(MONITOR, run, lambda _: None, 60)
        ended = {row["task_id"]: row["state"] for row in airflow.tasks(MONITOR, run)}
    row = loop.decisions()[-1]
    assert (row.action, row.rule) == ("rollback", "harm"), states["note"]
    assert ended == {"monitor": "success", "retrain": "skipped"}
    last = loop.ledger()[-1]
    assert (last.from_version, last.to_version, last.who) == (version, "2", "monitor")
    assert last.applied_at
    assert last.why.startswith(
        f"every one of {ENOUGH} scores is {answers[0]['probability']:.6g}"
    )
    (alert,) = [each for each in loop.delivered() if each not in before]
    assert alert["cause"].startswith(f"harm of version {version} (ledger row ")

    assert {row["model_version"] for row in loop.predict(loop.counted[:ENOUGH])} == {
        "2"
    }
    ledger = loop.ledger()
    again = loop.look()
    assert (again.version, again.verdict, again.action) == ("2", "ok", "nothing"), (
        again.reason
    )
    assert loop.ledger() == ledger, "ping-pong"
    assert loop.in_production() == "2"
    assert len(loop.delivered(alert["cause"])) == 1


def register_collapsing(settings: Settings, folder: Path) -> Version:
    """Register a model that told customers apart when it was evaluated and no longer does.

    It knows tenure alone, up to the longest there was then; today everybody's is longer. Run,
    frame, evaluation and `serving.json` are those of version 2.
    """
    registry, tracking = Registry(settings), Tracking(settings)
    second = registry.version(MODEL, "2")
    run_id = tracking.start_or_find_run("by hand", "tenure alone", "tenure alone", {})
    data = [(f"data/{name}", "data") for name in (FRAME, UNLABELLED)]
    for path, place in (*data, (PLAN, None), (EVALUATION, None)):
        with fetched(tracking, second.run_id, path) as file:
            tracking.log_artifact(run_id, file, place)
    registry.download(second, folder / "second")
    (folder / "extra").mkdir()
    (folder / "second" / CONTRACT_FILE).rename(folder / "extra" / CONTRACT_FILE)
    frame, plan = load_frame(tracking, run_id)
    rows = features(SPEC, at(frame, plan.test))
    return register(
        settings, model=MODEL, run_id=run_id, files=folder / "extra",
        exported=tenure_alone(float(rows["customer_tenure_days"].max())),
        input_example=rows.head(), tags={}, description="tenure alone",
        requirements=["onnxruntime"],
    )  # fmt: skip


def tenure_alone(longest: float) -> ModelFile:
    """Graph of score = sigmoid(0.01 · max(0, longest - customer_tenure_days) - 0.5)."""
    inputs = [helper.make_tensor_value_info(name, ONNX_TYPES[kind], [None])
              for name, kind in SPEC.features.items()]  # fmt: skip
    constants = {"longest": longest, "weight": 0.01, "bias": -0.5}
    nodes = [
        helper.make_node(
            "Cast", ["customer_tenure_days"], ["tenure"], to=TensorProto.FLOAT
        ),
        helper.make_node("Sub", ["longest", "tenure"], ["short_of"]),
        helper.make_node("Relu", ["short_of"], ["newer"]),
        helper.make_node("Mul", ["newer", "weight"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], [SCORE]),
    ]
    graph = helper.make_graph(
        nodes, "tenure_alone", inputs,
        [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, [None])],
        [helper.make_tensor(name, TensorProto.FLOAT, [1], [value])
         for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    return ModelFile(model.SerializeToString())
