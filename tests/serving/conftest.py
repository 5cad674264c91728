"""Real parts for the serving tests: Redis, MLflow, features, tiny ONNX models, the server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING, Any

import httpx
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper

from core.settings import PROJECT
from core.spec import ModelSpec, load_spec
from feature_repo.broker import consumer_problem
from feature_repo.datasets.orders import ORDERS
from feature_repo.lookup_writer import look_up_specification
from feature_repo.store import publish_beside
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote
from mlflow_server.pyfunc import ModelFile
from mlflow_server.registration import register
from mlflow_server.registry import Registry, Version
from mlflow_server.served_model import CONTRACT_FILE, SCORE, ServedModel
from mlflow_server.tracking import Tracking
from stack.environment import process_environment
from tests.conftest import (
    BIN,
    answers,
    feast_apply,
    mlflow_server,
    new_settings,
    redis_server,
    running,
    wait_until,
)
from tests.preloaded import commands_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from core.settings import Settings

SPEC = load_spec("customer_churn_model")
KNOWN = 4
FEATURES = {
    "total_orders_30d": 1, "total_orders_90d": 2, "total_spend_30d": 10.5, "total_spend_90d": 20,
    "lifetime_orders": 3, "lifetime_value": 60.25, "avg_order_value": 20.08,
    "customer_segment": "repeat", "days_since_last_order": 12, "customer_tenure_days": 200,
}  # fmt: skip
ONNX_TYPES = {
    "int64": TensorProto.INT64,
    "double": TensorProto.DOUBLE,
    "string": TensorProto.STRING,
}
FEATURE_TYPES = {name: ONNX_TYPES[kind] for name, kind in SPEC.features.items()}
DATATYPES = {"int64": "INT64", "double": "FP64", "string": "BYTES"}
TENSOR_TYPES = {
    "customer_id": "INT64", "cart_value": "FP64", "coupon": "BYTES", "items": "INT64",
    "boxes": "INT32", "rate": "FP32", "gift": "BOOL", "due": "BYTES",
}  # fmt: skip
"""Of Open Inference, of the key, and of the request data of test_request_data.py."""
TENSOR_TYPES |= {name: DATATYPES[kind] for name, kind in SPEC.features.items()}
INGEST = """
from datetime import UTC, datetime
from feature_repo.ingest import ingest
from core.settings import load_settings

ingest(load_settings(), "orders", datetime.now(UTC))
"""
NOT_READ = re.compile('"(cache|defaults)"')
"""`features_from` of an answer for which Redis took too long."""
PANDAS_TYPES = {"int64": "int64", "double": "float64", "string": "object"}


def onnx_graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, int],
    weights: Sequence[onnx.TensorProto] = (),
    classes: Sequence[int] = (),
) -> onnx.ModelProto:
    """Graph with inputs of those types, each [N], and a float32 score [N, *classes]."""
    input_infos = [
        helper.make_tensor_value_info(name, kind, [None])
        for name, kind in inputs.items()
    ]
    shape = [None, *classes]
    score_info = helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "tiny", input_infos, [score_info], weights)
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def tiny_onnx(bias: float, score: str = "Sigmoid") -> onnx.ModelProto:
    """Graph of score = sigmoid(0.01 · days_since_last_order + bias), as float32 [N]."""
    days = "days_since_last_order"
    nodes = [
        helper.make_node("Cast", [days], ["days"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["days", "weight"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["sum"]),
        helper.make_node(score, ["sum"], [SCORE]),
    ]
    weights = [
        helper.make_tensor("weight", TensorProto.FLOAT, [1], [0.01]),
        helper.make_tensor("bias", TensorProto.FLOAT, [1], [bias]),
    ]
    return onnx_graph(nodes, FEATURE_TYPES, weights)


@cache
def contract() -> ServedModel:
    """As registration writes it, of the definitions as the code has them."""
    with TemporaryDirectory() as name:
        settings = new_settings(Path(name))
        publish_beside(settings, ORDERS)
        lookup = look_up_specification(settings, SPEC.feature_service)
    return ServedModel(
        model=SPEC.name, entity_key=SPEC.entity_key, feature_service=SPEC.feature_service,
        features=SPEC.features, defaults=FEATURES, population=SPEC.population,
        nullable=("avg_order_value", "customer_segment"),
        threshold=SPEC.threshold, as_of="2026-11-01T00:00:00+00:00",
        lookup=lookup,
    )  # fmt: skip


def read_rows(path: Path, text: str = "") -> tuple[list[dict[str, Any]], int]:
    """Rows of one file of a log that have the text, and how many torn lines were skipped."""
    rows = []
    torn = 0
    for line in filter(None, path.read_bytes().split(b"\n")):
        if text.encode() not in line:
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            torn += 1
    return rows, torn


def body_of(protocol: str, row: dict[str, Any]) -> Any:
    """A row of features, or of a key with request data, in the form of a protocol."""
    if protocol == "v1":
        return {"instances": [row]}
    if protocol == "mlflow":
        return {"dataframe_split": {"columns": [*row], "data": [[*row.values()]]}}
    if protocol == "v2":
        tensors = []
        for name, value in row.items():
            tensor = {"name": name, "datatype": TENSOR_TYPES.get(name, "INT64")}
            tensors.append(tensor | {"shape": [1], "data": [value]})
        return {"inputs": tensors}
    if "customer_id" not in row:
        row = {"customer_id": KNOWN, "features": row}
    return [row] if protocol == "batch" else row


@dataclass
class Rig:
    """Everything around the server, and what a test does to it."""

    settings: Settings
    folder: Path
    opened: ExitStack
    redis: subprocess.Popen[bytes] | None = None
    mlflow: subprocess.Popen[bytes] | None = None
    count: int = 0
    spec: ModelSpec = SPEC
    features: dict[str, Any] = field(default_factory=lambda: dict(FEATURES))

    def start_redis(self) -> None:
        """Start it, or again over the data that the one before left behind."""
        running = redis_server(self.settings.redis_port, self.folder)
        self.redis = self.opened.enter_context(running)

    def start_mlflow(self) -> None:
        stoppable = mlflow_server(self.settings, BIN / "python")
        self.mlflow = self.opened.enter_context(stoppable)

    def register(
        self,
        bias: float,
        score: str = "Sigmoid",
        model: onnx.ModelProto | ModelFile | None = None,
        name: str = SPEC.name,
        **changed: Any,
    ) -> Version:
        """Register the tiny model, or `model` in its place. changed: of the contract."""
        file = model or tiny_onnx(bias, score)
        if isinstance(file, onnx.ModelProto):
            file = ModelFile(file.SerializeToString())
        self.count += 1
        files = self.folder / f"extra-{self.count}"
        files.mkdir()
        served = contract().model_copy(update={"model": name, **changed})
        (files / CONTRACT_FILE).write_text(served.model_dump_json())
        key = f"run {self.count} {bias} {score} {time.time_ns()}"
        tracking = Tracking(self.settings)
        run_id = tracking.start_or_find_run("serving-tests", key, key, {})
        types = {name: PANDAS_TYPES[kind] for name, kind in SPEC.features.items()}
        frame = pd.DataFrame([FEATURES]).astype(types)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's hints on integer columns and pip
            return register(
                self.settings, model=name, run_id=run_id, exported=file,
                files=files, input_example=frame,
                tags={}, description="tiny", requirements=["onnxruntime"],
            )  # fmt: skip

    def promote(self, version: str, name: str = SPEC.name) -> None:
        registry = Registry(self.settings)
        ledger = Ledger(self.settings)
        promote(registry, ledger, name, version, who="test", why="because")
        ledger.close()

    @contextmanager
    def serving(
        self, *program: str, **changed: Any
    ) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
        """`python -m serving` (or another program), live; a client of it and the process."""
        settings = self.settings.model_copy(update=changed)
        command = [sys.executable, *(program or ("-m", "serving"))]
        log = self.folder / "serving.log"
        with (
            running(command, log, **process_environment(settings)) as process,
            httpx.Client(base_url=settings.serving_address, timeout=60) as client,
        ):
            wait_until(
                "serving", lambda: answers(f"{settings.serving_address}/health/live")
            )
            yield client, process

    @contextmanager
    def consuming(self) -> Iterator[subprocess.Popen[bytes]]:
        """`gyre consume`, reading."""
        command = [str(BIN / "gyre"), "consume"]
        log = self.folder / "consumer.log"
        log.touch()
        start = log.stat().st_size
        with running(command, log, **process_environment(self.settings)) as process:
            wait_until("consumer", lambda: b"consuming" in log.read_bytes()[start:])
            wait_until("its reads", lambda: consumer_problem(self.settings) is None)
            yield process

    def copy_what_serves(self, home: Path) -> None:
        """Give another home what a worker needs to start by itself."""
        for part in ("serving/models", "feast"):
            shutil.copytree(self.settings.home / part, home / part, dirs_exist_ok=True)

    def home_beside(self, home: Path | None = None) -> Path:
        """Make a home for one more server: data, ledger and logs are these, the rest a copy."""
        home = home or Path(mkdtemp(dir=self.folder, prefix="beside-"))
        (home / "serving").mkdir()
        self.copy_what_serves(home)
        shared_home = self.settings.home
        for path in (*shared_home.iterdir(), *(shared_home / "serving").iterdir()):
            link = home / path.relative_to(shared_home)
            if not link.exists() and path.name not in {"lock", "fetch.lock", "run"}:
                link.symlink_to(path)
        return home

    def ingest(self) -> None:
        """Ingest the shipped orders.

        MLflow is not started yet, or answers: what has begun to start fails an ingest.
        """
        done = subprocess.run(
            [commands_folder() / "python", "-c", INGEST],
            cwd=PROJECT,
            env=process_environment(self.settings),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()[-2000:]

    wait_until = staticmethod(wait_until)

    def known_to_be_ready(self, client: httpx.Client, seconds: float = 900) -> None:
        wait_until(
            "ready", lambda: client.get("/health/ready").status_code == 200, seconds
        )

    def answers_as(
        self, client: httpx.Client, version: str, seconds: float = 900
    ) -> None:
        """Wait for `version`. That 5 s do, test_swap.py shows."""

        def is_there() -> bool:
            return self.predict(client).json().get("model_version") == version

        wait_until(f"version {version}", is_there, seconds)

    @staticmethod
    def predict(client: httpx.Client, key: int = KNOWN) -> httpx.Response:
        return client.post("/predict", json={"customer_id": key})

    @staticmethod
    def online(ask: Callable[[], httpx.Response]) -> httpx.Response:
        """Ask until the answer is made of what Redis says: a busy one is not waited for."""
        answers: list[httpx.Response] = []

        def is_read() -> bool:
            answers.append(ask())
            return not answers[-1].is_success or not NOT_READ.search(answers[-1].text)

        wait_until("an answer from Redis", is_read)
        return answers[-1]

    def predict_online(self, client: httpx.Client, key: int = KNOWN) -> httpx.Response:
        return self.online(lambda: self.predict(client, key))

    def rows(
        self, kind: str = "predictions", home: Path | None = None, text: str = ""
    ) -> list[dict[str, Any]]:
        """Return rows of the log, those whose line has the text."""
        folder = (home or self.settings.home) / "serving" / "log"
        files = sorted(folder.glob(f"{kind}-*.jsonl"))
        rows = [row for file in files for row in read_rows(file, text)[0]]
        return sorted(rows, key=lambda row: row["received"])

    def row_of(self, answer: httpx.Response) -> dict[str, Any]:
        """Return the row of the log of an answer."""
        request_id = answer.json()["request_id"].encode()
        folder = self.settings.home / "serving" / "log"
        files = sorted(
            folder.glob("predictions-*.jsonl"), key=lambda file: file.stat().st_mtime_ns
        )
        for file in reversed(files):
            for line in file.read_bytes().splitlines():
                if request_id in line:
                    row: dict[str, Any] = json.loads(line)
                    return row
        raise AssertionError(f"{answer.text} is not in the log")


SERVERS = pytest.StashKey[Rig]()
SERVER = pytest.StashKey["Served"]()


@pytest.fixture(scope="session")
def rig(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    """Redis with the real features, and MLflow; nothing registered yet.

    A folder of tests that imports this fixture, and `served`, has them as fixtures of its own:
    who comes first makes them, for all.
    """
    if SERVERS in pytestconfig.stash:
        yield pytestconfig.stash[SERVERS]
        return
    folder = tmp_path_factory.mktemp("serving")
    settings = new_settings(folder / "home", demo_start=None)
    with ExitStack() as opened, ThreadPoolExecutor() as threads:
        rig = Rig(settings, folder, opened)
        rig.start_redis()
        applying = threads.submit(feast_apply, settings)
        rig.start_mlflow()
        applying.result()
        rig.ingest()
        pytestconfig.stash[SERVERS] = rig
        yield rig


@dataclass
class Served:
    """The running server, what it said before anything was registered, and what it serves."""

    client: httpx.Client
    process: subprocess.Popen[bytes]
    empty: dict[str, httpx.Response]
    first: str
    second: str


@pytest.fixture(scope="session")
def served(pytestconfig: pytest.Config, rig: Rig) -> Iterator[Served]:
    """One server for the tests that leave it as it was: version `first` in production."""
    if SERVER in pytestconfig.stash:
        yield pytestconfig.stash[SERVER]
        return
    with rig.serving() as (client, process):

        def is_started() -> bool:
            status = client.get("/status")
            resources = status.json()["resources"]
            return resources["redis"]["ok"] and resources["mlflow"]["ok"]

        wait_until("Redis and MLflow asked", is_started)
        paths = ("/health/live", "/health/ready", "/status")
        empty = {path: client.get(path) for path in paths}
        empty["/predict"] = rig.predict(client)
        empty["/v1"] = client.get("/v1/models/customer_churn_model")
        first = rig.register(-1.0).version
        second = rig.register(0.5).version
        rig.promote(first)
        rig.known_to_be_ready(client)
        server = Served(client, process, empty, first, second)
        pytestconfig.stash[SERVER] = server
        yield server


@pytest.fixture(scope="session")
def consumer(rig: Rig, served: Served) -> Iterator[subprocess.Popen[bytes]]:
    """The consumer of the server's events."""
    with rig.consuming() as process:
        yield process
