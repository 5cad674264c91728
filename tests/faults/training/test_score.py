"""Batch scoring that is killed on the way and run again."""

import time
from contextlib import suppress
from datetime import timedelta

import psutil
import pyarrow.compute as pc
import pytest

from stack.environment import child_environment
from tests.conftest import AS_OF, mlflow_server
from tests.faults.jobs import program
from tests.support.training.small_installation import small_installation
from tests.training.conftest import changed, train
from training.batch import score_population, scores

SPEC = changed()
# For each moment that it reads it scores in a fork, and writes its pid.
SCORE = """
import json, os, sys
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
        score_population(settings, spec, datetime.fromisoformat(json.loads(line)))
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
"""
MINUTE = timedelta(minutes=1)


@pytest.fixture
def settings(tmp_path):
    settings = small_installation(tmp_path)
    with mlflow_server(settings):
        report = train(settings, SPEC, AS_OF, key="first")
        assert report.version == "1", report.outcome
        yield settings


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def counts(settings):
    """Return how many entities the table holds of each moment."""
    rows = scores(settings).read()
    return rows.group_by("as_of").aggregate([("entity", "count")]).to_pylist()


def test_a_scoring_killed_at_any_point_and_run_again_has_each_entity_once(settings):
    """Killed before it writes, on sight of its data file, and on sight of its commit."""
    entity_count = score_population(settings, SPEC, AS_OF).rows
    table = scores(settings).path
    moment = AS_OF
    with program("-c", SCORE, SPEC.name, **child_environment(settings)) as process_of:
        for new_file_count in (0, 1, 2):
            before = counts(settings)
            known_files = files(table)
            moment += MINUTE
            process = psutil.Process(process_of(moment.isoformat()))
            while len(files(table) - known_files) < new_file_count:
                time.sleep(0.0002)
            with suppress(psutil.NoSuchProcess):  # it has ended
                process.kill()
            process.wait(600)
            whole = [{"as_of": moment, "entity_count": entity_count}]
            assert counts(settings) in (before, whole), "a day half replaced"
    assert score_population(settings, SPEC, moment).rows == entity_count
    assert counts(settings) == whole
    rows = scores(settings).read()
    assert rows.num_rows == pc.count_distinct(rows["entity"]).as_py() == entity_count
