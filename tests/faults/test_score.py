"""Batch scoring that is killed on the way and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow.compute as pc
import pytest

from core.settings import PROJECT
from feature_repo.source import pull
from stack.environment import child_environment
from tests.conftest import AS_OF, mlflow_server, new_settings
from tests.preloaded import commands_folder
from tests.training.conftest import ORDERS, SHIPPED, SMALL, installation
from training import chain
from training.batch import score_population, scores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from core.settings import Settings

SPEC = SHIPPED.model_copy(update={"estimators": (SMALL,)})
SCORE = """
import os, sys
from datetime import datetime
import ibis.backends.duckdb, mlflow.onnx, feature_repo.extensions.offline
from feature_repo.datasets import load_dataset
from core.settings import load_settings
from core.spec import load_spec
from training.batch import score_population
settings, spec = load_settings(), load_spec(sys.argv[1])
load_dataset(spec.dataset)
for line in sys.stdin:
    child = os.fork()
    if not child:
        score_population(settings, spec, datetime.fromisoformat(line.strip()))
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""
MINUTE = timedelta(minutes=1)
TRIES = 100


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    home = tmp_path_factory.mktemp("scoring")
    rows = pull(new_settings(home / "source"), ORDERS, AS_OF).read_all()
    made = installation(home, rows.filter(pc.less(rows["customer_id"], 2000)))
    with mlflow_server(made):
        report = chain.train(made, SPEC, AS_OF, key="first", reason="first", who="test")
        assert report.version == "1", report.outcome
        yield made


@pytest.fixture(scope="module")
def scoring(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """A program that scores as of each moment it reads, in a fork: it says its pid, and its end."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_")}
    program = [commands_folder() / "python", "-c", SCORE, SPEC.name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = own | child_environment(settings)
    with subprocess.Popen(program, cwd=PROJECT, env=environment, **pipes) as process:
        yield process


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def held(settings: Settings) -> list[dict[str, Any]]:
    found = scores(settings).read().group_by("as_of").aggregate([("entity", "count")])
    return list(found.to_pylist())


@contextmanager
def on_one_core(pid: int) -> Iterator[None]:
    """Have a process and this one take turns: it stands still when this one looks."""
    cores, core = os.sched_getaffinity(0), {min(os.sched_getaffinity(0))}
    for thread in psutil.Process(pid).threads():
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread.id, core)
    os.sched_setaffinity(0, core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def kill_at(
    scoring: subprocess.Popen[str], table: Path, as_of: datetime, news: int
) -> int:
    """Kill a scoring on sight of so many new files; return how many there are then."""
    known = files(table)
    scoring.stdin.write(f"{as_of.isoformat()}\n")
    scoring.stdin.flush()
    pid = int(scoring.stdout.readline())
    process = psutil.Process(pid)
    with on_one_core(pid):
        while len(files(table) - known) < news and lives(process):
            time.sleep(0.0002)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert scoring.stdout.readline() == "ended\n"
    return len(files(table) - known)


def test_killed_at_any_point_and_run_again_each_entity_is_there_once(
    settings: Settings, scoring: subprocess.Popen[str]
) -> None:
    """Killed when reading, on sight of the commit, and between the new data file and the commit."""
    people, moment = score_population(settings, SPEC, AS_OF).rows, AS_OF
    table, torn = scores(settings).path, False
    kills = iter((0, 2, *[1] * TRIES))
    while not torn:
        news = next(kills, None)
        assert news is not None, "no kill came between a new file and its commit"
        before, moment = held(settings), moment + MINUTE
        found = kill_at(scoring, table, moment, news)
        now, whole = held(settings), [{"as_of": moment, "entity_count": people}]
        assert now in (before, whole), "a day half replaced"
        torn = now == before and found > 0
    assert score_population(settings, SPEC, moment).rows == people
    assert held(settings) == whole
    rows = scores(settings).read()
    assert rows.num_rows == pc.count_distinct(rows["entity"]).as_py() == people
