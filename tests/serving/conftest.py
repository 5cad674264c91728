"""Real parts for the serving tests: Redis, MLflow, features, tiny ONNX models, the server."""

import json
import re
import shutil
import struct
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import httpx
import onnx
import onnx.parser
import pandas as pd
import pytest
from fastapi import FastAPI

from core.settings import LOOPBACK, Settings, is_free
from core.spec import load_spec
from feature_engine.events.broker import consumer_problem
from feature_repo.datasets.orders import ORDERS
from feature_repo.published.specification import look_up_specification
from feature_repo.published.store import publish_beside
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.manifest import (
    CONTRACT_FILE,
    ONNX_FILE,
    SCORE,
    ModelManifest,
    digest_tags,
)
from mlflow_server.model.pyfunc import ModelFile
from mlflow_server.model.registration import register
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.promotion.promote import promote
from serving.additions import (
    explanation,
    kserve_v1,
    metadata,
    mlflow_scoring,
    open_inference,
)
from serving.app import add_routes
from serving.http.draining import Draining
from serving.protocols import predict
from serving.versions.opening import open_version
from stack.environment import process_environment
from tests.conftest import (
    BIN,
    answers,
    feast_apply,
    mlflow_server,
    new_settings,
    redis_server,
    running,
    unused_port,
    wait_until,
)
from tests.support.tools.preloaded import commands_folder

SPEC = load_spec("customer_churn_model")
KNOWN = 4
FEATURES = {
    "total_orders_30d": 1, "total_orders_90d": 2, "total_spend_30d": 10.5, "total_spend_90d": 20.0,
    "lifetime_orders": 3, "lifetime_value": 60.25, "avg_order_value": 20.08,
    "customer_segment": "repeat", "days_since_last_order": 12, "customer_tenure_days": 200,
}  # fmt: skip
DATATYPES = {"int64": "INT64", "double": "FP64", "string": "BYTES"}
TENSOR_TYPES = {
    "cart_value": "FP64", "coupon": "BYTES", "boxes": "INT32", "rate": "FP32", "gift": "BOOL",
    "due": "BYTES",
}  # fmt: skip
"""Of Open Inference, of the request data of test_request_data.py; INT64 where there is none."""
TENSOR_TYPES |= {name: DATATYPES[kind] for name, kind in SPEC.features.items()}
INGEST = """
from datetime import UTC, datetime
from feature_engine.ingest.pipeline import ingest
from core.settings import load_settings

ingest(load_settings(), "orders", datetime.now(UTC))
"""
NOT_READ = re.compile('"(cache|defaults)"')
"""`features_from` of an answer for which Redis took too long."""
PANDAS_TYPES = {"int64": "int64", "double": "float64", "string": "object"}


def onnx_graph(inputs, nodes, weights="", score="float[N]"):
    """Graph with inputs of those types, each [N], in ONNX's own notation."""
    columns = ", ".join(f"{kind}[N] {name}" for name, kind in inputs.items())
    return onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": 18]>
        tiny ({columns}) => ({score} {SCORE}) <{weights}> {{ {nodes} }}""")


def tiny_onnx(bias, score="Sigmoid", weight=0.01, kinds=SPEC.features):
    """Graph of score = sigmoid(0.01 · days_since_last_order + bias), as float32 [N]."""
    nodes = f"""
        days = Cast <to = 1> (days_since_last_order)
        scaled = Mul (days, weight)
        sum = Add (scaled, bias)
        {SCORE} = {score} (sum)"""
    weights = f"float[1] weight = {{{weight}}}, float[1] bias = {{{float(bias)}}}"
    return onnx_graph(kinds, nodes, weights)


@cache
def contract():
    """As registration writes it, of the definitions as the code has them."""
    with TemporaryDirectory() as name:
        settings = new_settings(Path(name))
        publish_beside(settings, ORDERS)
        lookup = look_up_specification(settings, SPEC.feature_service)
    return ModelManifest(
        model=SPEC.name, entity_key=SPEC.entity_key, feature_service=SPEC.feature_service,
        features=SPEC.features, defaults=FEATURES, population=SPEC.population,
        nullable=("avg_order_value", "customer_segment"),
        threshold=SPEC.threshold, as_of="2026-11-01T00:00:00+00:00", lookup=lookup,
    )  # fmt: skip


def read_log(folder, kind="predictions", text=""):
    """Rows of a log whose line has the text, without torn lines."""
    rows = []
    for file in sorted(folder.glob(f"{kind}-*.jsonl")):
        for line in file.read_bytes().split(b"\n"):
            if text.encode() in line:
                with suppress(ValueError):
                    rows.append(json.loads(line))
    return rows


def body_of(protocol, row):
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


def opened_version(folder, served, model, spec=SPEC):
    """Open a version as a worker does: its contract and its session."""
    (folder / ONNX_FILE).write_bytes(model.SerializeToString())
    (folder / CONTRACT_FILE).write_text(served.model_dump_json())
    return open_version(folder, digest_tags(folder), spec, "redis")


def place(view, customer, *names):
    """Return the hash of a customer in Redis, and its fields of some features of a view."""
    key = view.prefix + struct.pack("<IIq", 4, 8, customer) + view.suffix
    return key, [part.field for part in view.features if part.name in names]


def application(settings, repository):
    """An application of every protocol, without what runs beside a worker's routes."""
    scoring = list(predict.SCORING)
    for module in (explanation, kserve_v1, open_inference, mlflow_scoring):
        scoring += module.SCORING
    routes = metadata.routes(settings, repository)
    return add_routes(
        FastAPI(), settings, repository, scoring, routes, draining=Draining(0)
    )


def client_of(app):
    """A client of an application in the same event loop."""
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def counted(client, beginning):
    """Sum of the counters whose line in the metrics begins so."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(beginning))


@dataclass
class Rig:
    """Everything around the server, and what a test does to it."""

    settings: Settings
    folder: Path
    opened: ExitStack
    programs: Path = BIN
    """Folder of the Python that runs what is started here."""
    redis: subprocess.Popen[bytes] | None = None
    mlflow: subprocess.Popen[bytes] | None = None
    spec = SPEC
    features = FEATURES

    def start_redis(self):
        """Start it, or again over the data that the one before left behind."""
        self.redis = self.opened.enter_context(
            redis_server(self.settings.redis_port, self.folder)
        )

    def start_mlflow(self):
        self.mlflow = self.opened.enter_context(
            mlflow_server(self.settings, BIN / "python")
        )

    def register(self, bias, score="Sigmoid", model=None, name=SPEC.name, **changed):
        """Register the tiny model, or `model` in its place. changed: of the contract."""
        file = model or tiny_onnx(bias, score)
        if isinstance(file, onnx.ModelProto):
            file = ModelFile(file.SerializeToString())
        files = Path(mkdtemp(dir=self.folder))
        served = contract().model_copy(update={"model": name, **changed})
        (files / CONTRACT_FILE).write_text(served.model_dump_json())
        tracking = Tracking(self.settings)
        run_id = tracking.start_or_find_run("serving-tests", files.name, files.name, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's hints on integer columns and pip
            return register(
                self.settings, model=name, run_id=run_id, exported=file,
                files=files, input_example=pd.DataFrame([FEATURES]),
                tags={}, description="tiny", requirements=["onnxruntime"],
            )  # fmt: skip

    def promote(self, version, name=SPEC.name, **more):
        """Put a version into a role, as `promote` does: by default in production."""
        with closing(Ledger(self.settings)) as ledger:
            registry = Registry(self.settings)
            promote(registry, ledger, name, version, who="test", why="because", **more)

    def release(self, role):
        """End a trial."""
        self.promote(None, role=role, percent=0, action="release")

    @contextmanager
    def serving(self, *program, **changed):
        """`python -m serving` (or another program), live; a client of it and the process.

        changed: of the settings; who serves from another home has another port.
        """
        if "home" in changed:
            changed.setdefault("serving_port", unused_port())
        settings = self.settings.model_copy(update=changed)
        command = [str(self.programs / "python"), *(program or ("-m", "serving"))]
        log = self.folder / "serving.log"
        address = settings.serving_address
        # Another server on the port would answer in place of this one.
        free = partial(is_free, LOOPBACK, settings.serving_port)
        wait_until("the port of serving", free, seconds=30)
        with (
            running(command, log, **process_environment(settings)) as process,
            httpx.Client(base_url=address, timeout=60) as client,
        ):
            wait_until("serving", lambda: answers(f"{address}/health/live"))
            yield client, process

    @contextmanager
    def consuming(self):
        """`gyre consume`, reading."""
        command = [str(self.programs / "gyre"), "consume"]
        log = self.folder / "consumer.log"
        log.touch()
        start = log.stat().st_size
        with running(command, log, **process_environment(self.settings)) as process:
            wait_until("consumer", lambda: b"consuming" in log.read_bytes()[start:])
            wait_until("its reads", lambda: consumer_problem(self.settings) is None)
            yield process

    def copy_serving_files(self, home):
        """Give another home what a worker needs to start by itself."""
        for part in ("serving/models", "feast"):
            shutil.copytree(self.settings.home / part, home / part, dirs_exist_ok=True)

    def second_home(self, home=None):
        """Make a home for one more server: data, ledger and logs are these, the rest a copy."""
        home = home or Path(mkdtemp(dir=self.folder, prefix="beside-"))
        (home / "serving").mkdir()
        self.copy_serving_files(home)
        shared_home = self.settings.home
        for path in (*shared_home.iterdir(), *(shared_home / "serving").iterdir()):
            link = home / path.relative_to(shared_home)
            if not link.exists() and path.name not in {
                "lock",
                "fetch.lock",
                "run",
                "console",
            }:
                link.symlink_to(path)
        return home

    def ingest(self):
        """Ingest the shipped orders.

        MLflow is not started yet, or answers: what has begun to start fails an ingest.
        """
        self.run(commands_folder() / "python", "-c", INGEST)

    def run(self, *command):
        """Run a command to its good end; return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=process_environment(self.settings),
            capture_output=True,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def known_to_be_ready(self, client, seconds=900):
        wait_until(
            "ready", lambda: client.get("/health/ready").status_code == 200, seconds
        )

    def answers_as(self, client, version, seconds=900):
        """Wait for `version`. That 5 s do, test_swap.py shows."""

        def is_there():
            return self.predict(client).json().get("model_version") == version

        wait_until(f"version {version}", is_there, seconds)

    def swap(self, client, version):
        """Promote, and wait until the client is answered by that version."""
        self.promote(version)
        self.answers_as(client, version)

    @staticmethod
    def predict(client, key=KNOWN):
        return client.post("/predict", json={"customer_id": key})

    @staticmethod
    def online(ask):
        """Ask until the answer is made of what Redis says: a busy one is not waited for."""
        answers = []

        def is_read():
            answers.append(ask())
            return not answers[-1].is_success or not NOT_READ.search(answers[-1].text)

        wait_until("an answer from Redis", is_read)
        return answers[-1]

    def predict_online(self, client, key=KNOWN):
        return self.online(lambda: self.predict(client, key))

    @property
    def log(self):
        """Folder of the log."""
        return self.settings.home / "serving" / "log"

    def rows(self, kind="predictions", text=""):
        """Return rows of the log, those whose line has the text."""
        return sorted(read_log(self.log, kind, text), key=lambda row: row["received"])

    def row_of(self, answer):
        """Return the row of the log of an answer."""
        (row,) = self.rows(text=answer.json()["request_id"])
        return row


SERVERS = pytest.StashKey[Rig]()
SERVER = pytest.StashKey["Served"]()


@pytest.fixture(scope="session")
def rig(pytestconfig, tmp_path_factory):
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
    """The running server, and the versions that are registered."""

    client: httpx.Client
    process: subprocess.Popen[bytes]
    first: str
    second: str


@pytest.fixture(scope="session")
def served(pytestconfig, rig):
    """One server for the tests that leave it as it was: version `first` in production."""
    if SERVER in pytestconfig.stash:
        yield pytestconfig.stash[SERVER]
        return
    with rig.serving() as (client, process):
        first = rig.register(-1.0).version
        second = rig.register(0.5).version
        rig.promote(first)
        rig.known_to_be_ready(client)
        server = Served(client, process, first, second)
        pytestconfig.stash[SERVER] = server
        yield server


@pytest.fixture(scope="module")
def consumer(rig, served):
    """A consumer of the server's events; other files have none, or one that they kill."""
    with rig.consuming() as process:
        yield process
