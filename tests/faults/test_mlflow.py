"""MLflow that is down, and MLflow that accepts and never answers."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from serving.copies import LocalCopies
from stack.environment import process_environment
from tests.conftest import at_most, unused_port
from tests.faults.conftest import broken
from tests.preloaded import commands_folder
from tests.serving.load import under_load
from tests.serving.test_roles import end, give

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx


def asks_mlflow(client: httpx.Client) -> dict[str, Any]:
    resource: dict[str, Any] = client.get("/status").json()["resources"]["mlflow"]
    return resource


@pytest.mark.timed
@pytest.mark.parametrize(
    "how", [pytest.param("killed", marks=pytest.mark.nightly), "hangs"]
)
def test_serving_goes_on_without_mlflow_and_follows_it_again(
    rig: Any, served: Any, how: str
) -> None:
    """2: serving goes on, a cold restart serves the verified local copy."""
    client = served.client
    with under_load(client) as answers:
        with broken(rig, "mlflow", how):
            rig.wait_until("word of it", lambda: not asks_mlflow(client)["ok"])
            assert "MLflow does not answer (is it up?)" in asks_mlflow(client)["detail"]
            rig.known_to_be_ready(client)
            a_cold_restart_serves_the_verified_local_copy(rig, served)
        rig.wait_until("MLflow again", lambda: asks_mlflow(client)["ok"])
        rig.promote(served.second)
        rig.answers_as(client, served.second)
        rig.promote(served.first)
        rig.answers_as(client, served.first)
    assert {a.status for a in answers} == {200}
    assert {a.version for a in answers} == {served.first, served.second}
    assert max(a.took for a in answers) < at_most(1)


def a_cold_restart_serves_the_verified_local_copy(rig: Any, served: Any) -> None:
    with rig.serving(home=rig.home_beside(), serving_port=unused_port()) as (
        client,
        process,
    ):
        rig.known_to_be_ready(client)
        assert rig.predict_online(client).json()["model_version"] == served.first
        rig.wait_until("word of it", lambda: not asks_mlflow(client)["ok"])
        process.terminate()
        process.wait(600)
    assert "Application shutdown complete" in (rig.folder / "serving.log").read_text()


def test_a_start_without_mlflow_serves_production_or_nothing_but_no_version_on_trial(
    rig: Any, served: Any, tmp_path: Path
) -> None:
    """2: a challenger that was fetched later than production is not proven."""
    trial = rig.register(0.25).version
    give(rig, trial, "challenger", 1)
    copies = LocalCopies(rig.settings, rig.spec.name)
    rig.wait_until("its copy", lambda: copies.origin(trial))
    rig.copy_what_serves(tmp_path)
    end(rig, "challenger")
    away = {"home": tmp_path, "mlflow_port": unused_port()}
    with rig.serving(serving_port=unused_port(), **away) as (client, _):
        rig.known_to_be_ready(client)
        assert rig.predict(client).json()["model_version"] == served.first
    here = LocalCopies(
        rig.settings.model_copy(update={"home": tmp_path}), rig.spec.name
    )
    here.keep_only({trial})
    for version in here.production():
        here.remove(version)
    assert here.origin(trial)
    with rig.serving(serving_port=unused_port(), **away) as (client, _):
        rig.wait_until("word of it", lambda: not asks_mlflow(client)["ok"])
        assert rig.predict(client).status_code == 503


@pytest.fixture
def gyre(rig: Any, served: Any) -> Iterator[Any]:
    """Start `gyre train` in the installation that serves; the version before is back after it."""

    def train() -> subprocess.Popen[str]:
        command = [commands_folder() / "gyre", "train", rig.spec.name]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=process_environment(rig.settings), **pipes)

    yield train
    rig.wait_until("MLflow again", lambda: asks_mlflow(served.client)["ok"])
    if Registry(rig.settings).production(rig.spec.name) != served.first:
        rig.promote(served.first)
    rig.answers_as(served.client, served.first)


def clear_line(training: subprocess.Popen[str]) -> None:
    """Assert that it failed with one line that names MLflow."""
    out, said = training.communicate(timeout=600)
    complaints = [line for line in said.splitlines() if line.startswith("gyre: ")]
    assert (training.returncode, out, len(complaints)) == (1, "", 1), said
    assert said.splitlines()[-1] == complaints[0]
    assert "MLflow does not answer (is it up?)" in complaints[0]
    assert "Traceback" not in said


@pytest.mark.nightly
def test_training_without_mlflow_is_one_clear_line_and_can_be_run_again(
    rig: Any, served: Any, gyre: Any
) -> None:
    """2: training, with MLflow down from the start, gone on the way, and back."""
    before = {v.version for v in Registry(rig.settings).versions(rig.spec.name)}
    tracking = Tracking(rig.settings)
    with broken(rig, "mlflow", "killed"):
        clear_line(gyre())
    training = gyre()
    rig.wait_until("a run", lambda: len(tracking.runs(rig.spec.experiment)) > 0)
    with broken(rig, "mlflow", "killed"):
        clear_line(training)
    training = gyre()
    out, said = training.communicate(timeout=600)
    assert training.returncode == 0, said
    (version,) = {
        v.version for v in Registry(rig.settings).versions(rig.spec.name)
    } - before
    assert re.search(rf"version {version}\b", out)
    rig.answers_as(served.client, version)


def test_training_with_an_mlflow_that_hangs_is_one_clear_line(
    rig: Any, served: Any, gyre: Any
) -> None:
    """2: training; an answer that never comes is waited for 5 s."""
    with broken(rig, "mlflow", "hangs"):
        clear_line(gyre())
