"""A team's Feast on DynamoDB, as Feast's own store writes it, against moto."""

import json
import subprocess

import httpx
import pytest

from stack.environment import process_environment
from tests.conftest import answers, mlflow_server, new_settings, running, wait_until
from tests.serving.conftest import read_log
from tests.support.feature_repo.team import MODEL, REQUEST, SERVICE, make_team, rows_of
from tests.support.stores.dynamodb import dynamodb_programs
from tests.support.stores.s3 import s3_server

pytestmark = pytest.mark.nightly
STORE = "online_store:\n    type: dynamodb\n    region: us-east-1"
DRIVERS = [1001, 1002, 1003, 1004, 1005]
READ = """
import json, sys, feast
store = feast.FeatureStore(sys.argv[1])
service = store.get_feature_service(sys.argv[2])
print(json.dumps(store.get_online_features(service, json.loads(sys.argv[3])).to_dict()))
"""
"""Feast's own reader, in an environment of its own."""


def run(programs, folder, environment, *command):
    done = subprocess.run(
        [programs / command[0], *command[1:]], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_model_is_trained_and_served_on_it_with_the_values_of_feasts_own_reader(
    tmp_path, monkeypatch
):
    programs = dynamodb_programs()
    with s3_server(tmp_path, monkeypatch):
        project = make_team(tmp_path, STORE, programs)
        repository = project / "feature_repo"
        settings = new_settings(tmp_path / "home", feast_repo=repository)
        environment = process_environment(settings) | {"GYRE_PROJECT": str(project)}
        environment |= {"GYRE_WITHOUT": "airflow"}
        with mlflow_server(settings):
            trained = run(programs, project, environment, "gyre", "train", MODEL)
            assert "version 1 is in production" in trained
            log = settings.home / "serving.log"
            with running([programs / "python", "-m", "serving"], log, **environment):
                address = settings.serving_address
                wait_until("serving", lambda: answers(f"{address}/health/ready"), 120)
                for driver in DRIVERS:
                    row = {"driver_id": driver, **REQUEST}
                    answer = httpx.post(
                        f"{address}/models/{MODEL}/predict", json=row, timeout=60
                    )
                    assert answer.json()["features_from"] == "online"
        keys = json.dumps([{"driver_id": driver, **REQUEST} for driver in DRIVERS])
        command = ["python", "-c", READ, repository, SERVICE, keys]
        output = run(programs, project, environment, *command)
    stock = json.loads(output)
    rows = rows_of(repository).sort_values(["event_timestamp", "created"])
    logged = read_log(settings.home / "serving" / "log", "predictions", "")
    assert len(logged) == len(DRIVERS)
    for row in logged:
        driver = int(row["entity"])
        features = row["features"]
        position = DRIVERS.index(driver)
        newest = rows[rows["driver_id"] == driver].iloc[-1]
        assert features["conv_rate"] == pytest.approx(newest["conv_rate"], abs=1e-6)
        for name in ("conv_rate", "conv_rate_plus_val1"):
            assert features[name] == pytest.approx(stock[name][position], abs=1e-6)
