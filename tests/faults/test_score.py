"""Batch scoring that is killed on the way and run again."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
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
    from pathlib import Path

    from core.settings import Settings

SPEC = SHIPPED.model_copy(update={"estimators": (SMALL,)})
# For each moment that it reads it scores in a fork, and writes its pid, and "ended".
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


@pytest.fixture
def settings(tmp_path):
    rows = pull(new_settings(tmp_path / "source"), ORDERS, AS_OF).read_all()
    few = rows.filter(pc.less(rows["customer_id"], 1000))
    settings = installation(tmp_path, few)
    with mlflow_server(settings):
        report = chain.train(
            settings, SPEC, AS_OF, key="first", reason="first", who="test"
        )
        assert report.version == "1", report.outcome
        yield settings


@pytest.fixture
def scoring(settings):
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_")}
    variables |= child_environment(settings)
    program = [commands_folder() / "python", "-c", SCORE, SPEC.name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, cwd=PROJECT, env=variables, **pipes) as process:
        yield process


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def counts(settings: Settings) -> list[dict[str, Any]]:
    """Return how many entities the table holds of each moment."""
    rows = scores(settings).read()
    return rows.group_by("as_of").aggregate([("entity", "count")]).to_pylist()


def test_killed_at_any_point_and_run_again_each_entity_is_there_once(settings, scoring):
    """Killed before it writes, on sight of its data file, and on sight of its commit."""
    entity_count = score_population(settings, SPEC, AS_OF).rows
    table = scores(settings).path
    moment = AS_OF
    for new_file_count in (0, 1, 2):
        before = counts(settings)
        known_files = files(table)
        moment += MINUTE
        scoring.stdin.write(f"{moment.isoformat()}\n")
        scoring.stdin.flush()
        process = psutil.Process(int(scoring.stdout.readline()))
        while len(files(table) - known_files) < new_file_count:
            time.sleep(0.0002)
        with suppress(psutil.NoSuchProcess):  # it has ended
            process.kill()
        assert scoring.stdout.readline() == "ended\n"
        whole = [{"as_of": moment, "entity_count": entity_count}]
        assert counts(settings) in (before, whole), "a day half replaced"
    assert score_population(settings, SPEC, moment).rows == entity_count
    assert counts(settings) == whole
    rows = scores(settings).read()
    assert rows.num_rows == pc.count_distinct(rows["entity"]).as_py() == entity_count
