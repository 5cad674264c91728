"""Real tools in temporary folders, on free ports: nothing here stands in for anything."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext
from typing import Any

import httpx
import pytest
from coverage import Coverage
from execnet.xspec import XSpec
from redis import Redis
from redis.exceptions import RedisError
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from core.project import PROJECT
from core.settings import LOOPBACK, Settings, free_ports, is_free
from feature_repo.online_store import find_server
from feature_repo.published.config import write_feast_config
from mlflow_server.server import command as mlflow_command
from stack.environment import process_environment
from tests.support.tools.debian import TARGET
from tests.support.tools.preloaded import FOLDER, commands_folder
from tests.targets import ci_targets, file_of, marks_of, runs_in

BIN = Path(sys.executable).parent
START = date(2099, 11, 20)
"""Far ahead: whatever a test promotes now was promoted before AS_OF."""
AS_OF = datetime(2099, 11, 20, 12, tzinfo=UTC)
GROUPS = {
    "tests/monitoring/console": "console",
    "tests/serving": "serving",
    "tests/training": "training",
    "tests/mlflow_server": "mlflow_server",
    "tests/faults": "faults",
}
"""Folders whose tests share servers that take long to start: one worker has all of a group."""
UNGROUPED = {
    f"tests/faults/{name}.py"
    for name in (
        "histories/test_histories",
        "stores/test_ingest",
        "stores/test_redis_connection",
        "stores/test_s3",
        "training/test_score",
    )
}
"""Files of these folders that need none of the servers."""
LONGEST = (
    "console",
    "training",
    "serving",
    "faults",
    "tests/monitoring/test_monitor.py",
    "tests/feature_engine/engines/test_spark.py",
    "tests/feature_engine/online/test_refresh.py",
    "tests/feature_engine/test_parity_properties.py",
    "tests/loop/test_stack.py",
    "tests/feature_repo/test_loop_on_plain_feast.py",
    "tests/feature_engine/ingest/test_odd_sources.py",
    "tests/feature_engine/ingest/test_value_faults.py",
    "tests/feature_engine/ingest/test_buckets.py",
    "tests/gyre/test_notebook.py",
    "tests/loop/test_demo.py",
    "tests/loop/test_backup.py",
    "tests/pipelines/test_pipelines.py",
    "mlflow_server",
    "tests/test_small_loop.py",
    "tests/feature_engine/events/test_consumer.py",
    "tests/feature_engine/events/test_kafka_broker.py",
    "tests/monitoring/checks/test_skew.py",
    "tests/dags/test_standalone.py",
    "tests/cli/test_project.py",
    "tests/cli/test_second_use_case.py",
    "tests/cli/test_check.py",
    "tests/core/test_sinks.py",
)
"""Groups and files that take longest, to be begun first."""
MEASURED = {
    "tests/mlflow_server/test_promotion.py",
    "tests/monitoring/decisions/test_decision.py",
    "tests/serving/features/test_missing_features.py",
    "tests/serving/features/test_reader.py",
    "tests/training/test_chain.py",
    "tests/training/stages/test_gate.py",
}
"""Files during which coverage is measured: tracing makes a test take longer."""
NO_CERTIFICATES = SSLContext(PROTOCOL_TLS_CLIENT)
"""For what is asked often by http: reading the system's certificates takes longer than the answer."""
PROMISED = os.environ.get("TEST_TIMES") == "promised"


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "run the tests of one make target (tests/targets.py)"
    parser.addoption("--target", help=words)


def pytest_configure(config: pytest.Config) -> None:
    """Keep bytecode, here and in what tests start: compiling takes longer than all else.

    Say which seeds a nightly run of odd sources draws.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ[TARGET] = config.getoption("target") or ""
    sys.dont_write_bytecode = False
    # Workers have to draw alike; each night draws anew.
    os.environ.setdefault("ODD_SEED", f"{datetime.now(UTC).toordinal()}000")


def group(nodeid: str) -> str:
    """Return the group of a test, or its file."""
    file = nodeid.partition("::")[0]
    if file in UNGROUPED:
        return file
    names = (name for folder, name in GROUPS.items() if file.startswith(f"{folder}/"))
    return next(names, file)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say after `make test` where the other tests are."""
    if os.environ[TARGET] == "test":
        names = [name for name in ci_targets() if name not in {"check", "test"}]
        others = ", ".join(f"make {name}" for name in names)
        terminalreporter.write_line(f"other tests: {others}; docs/tests.md")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[XSpec]) -> None:
    """Fork the workers of a process that has imported the libraries: each would take 15 s for them.

    What they leave in the folder of temporary files goes with that process.
    """
    for spec in specs:
        spec.python = str(commands_folder() / "python")
        spec.env["TMPDIR"] = str(commands_folder() / "tmp")


class GroupScheduling(LoadScopeScheduling):
    """Gives all tests of a group to one worker (pytest-xdist 3.8's own groups fail on pytest 9)."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(
    config: pytest.Config, log: Producer
) -> GroupScheduling:
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Keep the tests of the target, and let the longest groups begin first."""
    target = config.getoption("target")
    if target:
        chosen = [
            item for item in items if runs_in(target, file_of(item), marks_of(item))
        ]
        others = [*set(items).difference(chosen)]
        config.hook.pytest_deselected(items=others)
        items[:] = chosen
    position = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: position.get(group(item.nodeid), len(LONGEST)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure coverage, if it is asked for, in the files that test what is measured."""
    coverage = Coverage.current()
    if coverage is None or item.nodeid.partition("::")[0] in MEASURED:
        return (yield)
    coverage.stop()
    try:
        return (yield)
    finally:
        coverage.start()


def unused_port() -> int:
    return free_ports()["serving_port"]


def at_most(seconds: float) -> float:
    """Return the limit for what is promised within `seconds`: ten times that, but in nightly.

    `make promises` sets TEST_TIMES=promised, and runs every test marked `timed` so.
    """
    return seconds if PROMISED else 10 * seconds


def wait_until(
    what: str,
    ready: Callable[[], bool],
    seconds: float = 900,
    process: subprocess.Popen[bytes] | None = None,
) -> None:
    """Ask `ready` ten times a second; fail after `seconds`, a safety net unless promised.

    process: what is waited for; where it has ended there is no use in waiting.
    """
    until = time.monotonic() + seconds
    while not ready():
        assert process is None or process.poll() is None, (
            f"{what}: its process has ended"
        )
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.1)


@contextmanager
def running(
    command: list[str], log: Path, **extra: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that ends with the block, and with this process, however that ends."""
    # Feast, once imported by a test, turns on Prometheus's multi-process mode for all children.
    own = {
        k: v for k, v in (os.environ | extra).items() if not k.startswith("PROMETHEUS_")
    }
    if FOLDER in os.environ:
        own["TMPDIR"] = f"{os.environ[FOLDER]}/tmp"  # it goes with the run
    command = ["setpriv", "--pdeathsig", "KILL", *command]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=PROJECT, env=own
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, verify=NO_CERTIFICATES).is_success
    except httpx.TransportError:
        return False


@contextmanager
def redis_server(
    port: int, folder: Path, host: str = "127.0.0.1"
) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(find_server()), "--port", str(port), "--bind", host]
    command += ["--dir", str(folder), "--save", "", "--appendonly", "yes"]
    command += ["--protected-mode", "no"]  # other hosts of tests reach it too

    def pong() -> bool:
        with suppress(RedisError), Redis(host, port) as redis:
            return bool(redis.ping())
        return False

    with running(command, folder / "redis.log") as process:
        wait_until("Redis", pong, process=process)
        yield process


@contextmanager
def mlflow_server(
    settings: Settings, python: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow by the preloaded python, which takes no signal other than SIGKILL, or by another.

    An empty database is a copy of the first one of the run: making its tables takes 2 s.
    """
    python = python or commands_folder() / "python"
    settings.home.mkdir(parents=True, exist_ok=True)
    log = settings.home / "mlflow.log"
    command = [str(python), *mlflow_command.command(settings)[1:]]
    environment = mlflow_command.environment(settings)
    database = settings.home / "mlflow" / "mlflow.db"
    template = commands_folder() / "mlflow.db"
    is_new = not settings.database_url and not database.exists()
    if is_new and template.exists():
        shutil.copy(template, database)
    # One that was killed may still answer, as a fork ends after its client.
    is_port_free = partial(is_free, LOOPBACK, settings.mlflow_port)
    wait_until("the port of MLflow", is_port_free, seconds=60)
    with running(command, log, **environment) as process:
        is_up = partial(answers, f"{settings.mlflow_address}/health")
        wait_until("MLflow", is_up, process=process)
        if is_new and not template.exists():
            keep_copy(database, template)
        yield process


def keep_copy(database: Path, copy: Path) -> None:
    """Copy a SQLite database that a server has open; who reads the copy finds all of it."""
    part = copy.with_suffix(f".{os.getpid()}")
    with (
        closing(sqlite3.connect(database)) as source,
        closing(sqlite3.connect(part)) as target,
    ):
        source.backup(target)
    part.rename(copy)


def run_feast(settings: Settings, *arguments: str, **variables: str) -> str:
    """Run a command of Feast as a user does; return what it writes to stderr."""
    write_feast_config(settings)
    done = subprocess.run(
        [commands_folder() / "feast", *arguments],
        cwd=PROJECT / "feature_repo",
        env=process_environment(settings) | variables,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def feast_apply(settings: Settings) -> None:
    """Publish the shipped definitions."""
    run_feast(settings, "apply")


def new_settings(home: Path, **more: Any) -> Settings:
    """Settings of an installation of its own, its demo dated for START."""
    return Settings(**({"home": home, "demo_start": START} | free_ports() | more))
