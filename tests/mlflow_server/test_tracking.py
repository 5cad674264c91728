"""Runs and models on the real server, and an MLflow that refuses or does not answer."""

import socket
import sqlite3
import time
import uuid

import pytest

from core.errors import RegistryError
from core.settings import Settings
from mlflow_server.api.pages import DeletedExperiment, Pages
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.promotion.ledger import Ledger
from tests.conftest import at_most, mlflow_server, unused_port
from tests.mlflow_server.conftest import client


@pytest.fixture
def tracking(settings):
    return Tracking(settings)


@pytest.fixture
def experiment():
    return f"experiment {uuid.uuid4().hex[:8]}"


@pytest.mark.journey
def test_texts_of_any_length_are_kept_as_far_as_there_is_room(empty_database):
    reason = "drift of version 1; " * 1_000
    Ledger(empty_database).close()  # it makes MLflow's schema
    with mlflow_server(empty_database):
        tracking = Tracking(empty_database)
        run_id = tracking.start_or_find_run("e", "k", reason, {"reason": reason})
        tracking.end(run_id, reason)
        run = client(empty_database).get_run(run_id)
    texts = {"name": (run.info.run_name, 250)}
    for name in ("reason", "outcome", "mlflow.note.content"):
        texts[name] = (run.data.tags[name], 8_000)
    for text, longest in texts.values():
        assert len(text) == longest
        assert text.startswith(reason[:200])
        assert text.endswith(" … (cut)")


def test_a_deleted_experiment_is_named_with_what_brings_it_back(
    settings, tracking, experiment
):
    tracking.start_or_find_run(experiment, "k", "first", {})
    api = client(settings)
    number = api.get_experiment_by_name(experiment).experiment_id
    api.delete_experiment(number)
    remedy = f"{experiment} was deleted.* restore --experiment-id {number};"
    with pytest.raises(RegistryError, match=remedy):
        tracking.start_or_find_run(experiment, "k", "second", {})
    deleted = DeletedExperiment(experiment, number)
    assert Pages(settings).training(experiment) == deleted
    api.restore_experiment(number)
    tracking.start_or_find_run(experiment, "k", "third", {})
    assert len(tracking.runs(experiment)) == 1
    assert Pages(settings).training(experiment) is None


@pytest.mark.journey
def test_all_runs_of_an_experiment_are_read(settings, tracking, experiment):
    first = tracking.start_or_find_run(experiment, "k", "first", {})
    api = client(settings)
    experiment_id = api.get_experiment_by_name(experiment).experiment_id
    for _ in range(100):
        api.create_run(experiment_id)
    api.delete_run(first)
    assert len(tracking.runs(experiment)) == 100
    assert len(tracking.runs(experiment, deleted=True)) == 101


def test_more_models_than_a_page_holds_are_read_to_the_end(settings, registry):
    names = [f"page_{number:04}" for number in range(1_050)]
    with sqlite3.connect(settings.home / "mlflow" / "mlflow.db") as database:
        database.executemany(
            "INSERT INTO registered_models (name, workspace, creation_time, last_updated_time) "
            "VALUES (?, 'default', 0, 0)",
            [(name,) for name in names],
        )
    assert set(names) <= registry.models().keys()


def test_an_error_of_mlflow_is_reported_in_one_line(tracking, experiment, tmp_path):
    run_id = tracking.start_or_find_run(experiment, "k", "run", {})
    tracking.log(run_id, params={"depth": 8})
    with pytest.raises(RegistryError, match=r"log batch: .*depth"):
        tracking.log(run_id, params={"depth": 9})
    with pytest.raises(RegistryError, match=r"download artifacts: .*nothing\.json"):
        tracking.download_artifacts(run_id, "nothing.json", str(tmp_path))


@pytest.mark.journey
@pytest.mark.timed
def test_an_mlflow_that_is_down_or_silent_is_reported_in_one_line_soon(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (silent.getsockname()[1], unused_port()):
            registry = Registry(Settings(home=tmp_path, mlflow_port=port))
            started = time.monotonic()
            with pytest.raises(RegistryError, match="MLflow does not answer") as caught:
                registry.versions("m")
            assert time.monotonic() - started < at_most(6)
            assert "\n" not in str(caught.value)
