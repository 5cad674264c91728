"""MLflow that is down, and MLflow that accepts and never answers."""

import subprocess

import pytest

from stack.environment import process_environment
from tests.conftest import at_most, wait_until
from tests.faults.conftest import broken, second_server
from tests.support.serving.load import under_load
from tests.support.tools.preloaded import commands_folder


def asks_mlflow(client):
    return client.get("/status").json()["resources"]["mlflow"]


@pytest.mark.timed
@pytest.mark.parametrize(
    "how", [pytest.param("killed", marks=pytest.mark.nightly), "hangs"]
)
def test_serving_continues_without_mlflow_and_follows_it_again(rig, served, how):
    """2: serving goes on, a cold restart serves the verified local copy."""
    client = served.client
    with under_load(client) as answers:
        with broken(rig, "mlflow", how):
            wait_until("no MLflow", lambda: not asks_mlflow(client)["ok"])
            assert "MLflow does not answer (is it up?)" in asks_mlflow(client)["detail"]
            rig.known_to_be_ready(client)
            a_cold_restart_serves_the_verified_local_copy(rig, served)
        wait_until("MLflow again", lambda: asks_mlflow(client)["ok"])
        rig.swap(client, served.second)
        rig.swap(client, served.first)
    assert {a.status for a in answers} == {200}
    assert {a.version for a in answers} == {served.first, served.second}
    assert max(a.took for a in answers) < at_most(1)


def a_cold_restart_serves_the_verified_local_copy(rig, served):
    with second_server(rig) as (client, process):
        assert rig.predict_online(client).json()["model_version"] == served.first
        wait_until("no MLflow", lambda: not asks_mlflow(client)["ok"])
        process.terminate()
        process.wait(600)
    assert "Application shutdown complete" in (rig.folder / "serving.log").read_text()


def test_training_with_a_hanging_mlflow_ends_with_one_clear_line(rig, served):
    """2: an answer that never comes is waited for 5 s."""
    command = [commands_folder() / "gyre", "train", rig.spec.name]
    variables = process_environment(rig.settings)
    with broken(rig, "mlflow", "hangs"):
        training = subprocess.run(
            command, env=variables, capture_output=True, text=True, check=False
        )
    wait_until("MLflow again", lambda: asks_mlflow(served.client)["ok"])
    lines = training.stderr.splitlines()
    errors = [line for line in lines if line.startswith("gyre: ")]
    assert (training.returncode, training.stdout, errors) == (1, "", lines[-1:])
    assert "MLflow does not answer (is it up?)" in lines[-1]
    assert "Traceback" not in training.stderr
