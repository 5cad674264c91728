"""Batch scoring that is killed on the way and run again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow.compute as pc
import pytest

from core.settings import PROJECT
from core.spec import load_spec
from feature_repo.source import pull
from stack.environment import child_environment
from tests.conftest import AS_OF, mlflow_server, new_settings
from tests.training.conftest import ORDERS, installation
from training import chain
from training.batch import score_population, scores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from core.settings import Settings

SPEC = load_spec("customer_churn_model")
SCORE = """
import sys
from datetime import datetime
from feature_repo.datasets import load_dataset
from core.settings import load_settings
from core.spec import load_spec
from training.batch import score_population
settings, spec = load_settings(), load_spec(sys.argv[1])
load_dataset(spec.dataset)
print("ready", flush=True)
score_population(settings, spec, datetime.fromisoformat(sys.stdin.readline().strip()))
print("done", flush=True)
"""
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    home = tmp_path_factory.mktemp("scoring")
    rows = pull(new_settings(home / "source"), ORDERS, AS_OF)
    made = installation(home, rows.filter(pc.less(rows["customer_id"], 2000)))
    with mlflow_server(made):
        report = chain.train(made, SPEC, AS_OF, key="first", reason="first", who="test")
        assert report.version == "1", report.outcome
        yield made


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def held(settings: Settings) -> list[dict[str, Any]]:
    found = scores(settings).read().group_by("as_of").aggregate([("entity", "count")])
    return list(found.to_pylist())


@contextmanager
def in_small_steps(pid: int) -> Iterator[None]:
    """Have a process move only while this one sleeps: both on one core, and it yields to all."""
    cores, core = os.sched_getaffinity(0), {min(os.sched_getaffinity(0))}
    for thread in psutil.Process(pid).threads():
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread.id, core)
            os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))
    os.sched_setaffinity(0, core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def test_killed_at_any_point_and_run_again_each_entity_is_there_once(settings: Settings) -> None:
    """Killed when reading, on sight of the new data file, and on sight of the commit."""
    people = score_population(settings, SPEC, AS_OF).rows
    own = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_")}
    program = [sys.executable, "-W", "ignore", "-c", SCORE, SPEC.name]
    table, moment, torn = scores(settings).path, AS_OF, 0
    with ExitStack() as after:
        processes = [
            after.enter_context(
                subprocess.Popen(
                    program, cwd=PROJECT, env=own | child_environment(settings), text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )
            )
            for _ in range(3)
        ]  # fmt: skip
        for news, process in enumerate(processes):
            assert process.stdout.readline() == "ready\n"
            before, known = held(settings), files(table)
            process.stdin.write(f"{(moment + (news + 1) * HOUR).isoformat()}\n")
            process.stdin.flush()
            until = time.monotonic() + 60
            with in_small_steps(process.pid):
                while len(files(table) - known) < news:
                    assert process.poll() is None
                    assert time.monotonic() < until
                    time.sleep(0.0002)
                process.kill()
            process.wait(10)
            now = held(settings)
            whole = [{"as_of": moment + (news + 1) * HOUR, "entity_count": people}]
            assert now in (before, whole), "a day half replaced"
            torn += now == before and len(files(table) - known) > 0
            again = score_population(settings, SPEC, moment + (news + 1) * HOUR)
            assert again.rows == people
            assert held(settings) == whole
            rows = scores(settings).read()
            assert rows.num_rows == pc.count_distinct(rows["entity"]).as_py() == people
    assert torn, "no kill came between a new file and its commit"
