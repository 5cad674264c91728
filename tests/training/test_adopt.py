"""Models that were trained elsewhere, as a team logs them in MLflow, become versions."""

import json
import os
import subprocess
from datetime import UTC, datetime

import pytest

from core.errors import RegistryError, SettingsError, TrainingError
from core.project import CLONE
from core.spec import load_spec
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.model.pyfunc import read_version
from serving.errors import ModelFailedError
from serving.versions.opening import open_version
from stack.environment import process_environment
from tests.conftest import mlflow_server, new_settings
from tests.support.feature_repo.team import MODEL, SERVICE, SPEC, make_team
from tests.support.tools.preloaded import commands_folder
from tests.support.training.adoptions import converted, take
from tests.support.training.team_models import rows
from training.artifacts import PROOF, artifact_bytes
from training.chain import train
from training.model.scoring import score, session_inputs
from training.reproduce import reproduce

pytestmark = pytest.mark.journey

PICKLE = "model.pkl is a pickle, which can run any code while it is opened: .*GYRE_ADOPT_PICKLES"
GATE = '[[gates]]\nmetric = "log_loss"\nrule = "at_most"\nvalue = 10\n'
"""Feast's example rows are drawn anew each time: a stricter gate would pass by chance."""

LOADERS = {
    "registered": "mlflow.onnx",
    "lightgbm": "mlflow.lightgbm",
    "run": "mlflow.xgboost",
    "frame": "mlflow.onnx",
}
"""MLflow's module that loads what is served of a model."""

LOAD = """
import json, sys, mlflow.pyfunc
from tests.support.training.team_models import rows
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps(model.predict(rows()).tolist()))
"""
"""A version as MLflow's own tools open it."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A spec without estimators: its versions come from elsewhere."""
    folder = tmp_path_factory.mktemp("spec")
    (folder / f"{MODEL}.toml").write_text(SPEC.partition("[[estimators]]")[0] + GATE)
    return load_spec(MODEL, folder)


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    return make_team(tmp_path_factory.mktemp("team"))


@pytest.fixture(scope="module")
def settings(team, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    settings = new_settings(home, feast_repo=team / "feature_repo")
    with mlflow_server(settings):
        yield settings


@pytest.fixture(scope="module")
def theirs(settings, tmp_path_factory):
    """The addresses and the scores of a team's models."""
    folder = tmp_path_factory.mktemp("models")
    results = folder / "results.json"
    command = [commands_folder() / "python", "-m", "tests.support.training.team_models"]
    arguments = [settings.mlflow_address, folder / "saved", results]
    subprocess.run(command + arguments, cwd=CLONE, check=True, capture_output=True)
    return json.loads(results.read_text())


@pytest.fixture
def here(spec, team):
    """The spec, with the address of the team's labels."""
    label = spec.label.model_copy(update={"source": str(team / "labels.parquet")})
    return spec.model_copy(update={"label": label})


@pytest.mark.parametrize("name", ["registered", "lightgbm", "run", "frame"])
def test_a_model_of_each_library_becomes_a_version_with_its_scores(
    settings, theirs, here, name
):
    source = theirs["places"][name]
    report = take(settings, here, source)
    assert report.version, report.outcome
    assert "in production" in report.outcome
    registry = Registry(settings)
    version = registry.version(MODEL, report.version)
    assert version.tags["adopted_from"] == source
    contract, model = read_version(registry, version)
    assert contract.loader == LOADERS[name]
    expected = theirs["scores"][name]
    assert score(model, here.inputs, rows()) == pytest.approx(expected, abs=1e-6)
    tracking = Tracking(settings)
    proof = json.loads(artifact_bytes(tracking, report.run_id, PROOF))
    assert proof["reasons"] == []
    assert proof["largest_difference"] <= 1e-6
    with pytest.raises(RegistryError, match="was trained elsewhere: "):
        reproduce(settings, MODEL, report.version)


@pytest.mark.parametrize("name", ["columns", "matrix", "one column", "one number"])
def test_a_model_of_another_shape_is_converted_with_its_scores(
    settings, theirs, spec, name, tmp_path
):
    source = theirs["places"][name]
    result, model = converted(settings, spec, source, rows(), tmp_path)
    assert (result.error, result.loader) == ("", "mlflow.onnx")
    expected = theirs["scores"][name]
    assert score(model, spec.inputs, rows()) == pytest.approx(expected, abs=1e-6)
    assert result.proof.reasons == ()
    assert result.proof.largest_difference <= 1e-6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pickle", PICKLE),
        ("unsigned", "the model has no signature: log it again with one"),
        ("wide", r"driver_trips.toml: features: more \(double\) is missing"),
        ("nowhere", "expected a folder with a file MLmodel, no nowhere"),
    ],
)
def test_a_model_that_cannot_be_taken_is_named_and_registers_nothing(
    settings, theirs, here, name, message
):
    versions = len(Registry(settings).versions(MODEL))
    with pytest.raises(TrainingError, match=message):
        take(settings, here, theirs["places"].get(name, name))
    assert len(Registry(settings).versions(MODEL)) == versions


def test_a_pickle_is_opened_where_the_installation_says_so(
    settings, theirs, spec, tmp_path, monkeypatch
):
    monkeypatch.setenv("GYRE_ADOPT_PICKLES", "true")
    source = theirs["places"]["pickle"]
    result, model = converted(settings, spec, source, rows(), tmp_path)
    assert (result.error, result.proof.reasons) == ("", ())
    expected = theirs["scores"]["pipeline"]
    assert score(model, spec.inputs, rows()) == pytest.approx(expected, abs=1e-6)


def test_a_model_of_pyfunc_is_scored_in_a_process_of_its_own_where_it_may_run(
    settings, theirs, here, tmp_path, monkeypatch, caplog
):
    source = theirs["places"]["pyfunc"]
    remedy = "the model runs its own code while it is opened: .*GYRE_ADOPT_PICKLES=true"
    with pytest.raises(TrainingError, match=remedy):
        take(settings, here, source, key="refused")
    opened_by = tmp_path / "opened_by"
    monkeypatch.setenv("OPENED_BY", str(opened_by))
    monkeypatch.setenv("GYRE_ADOPT_PICKLES", "true")
    report = take(settings, here, source, key="pyfunc")
    assert "in production" in report.outcome
    assert "slower than ONNX; each server runs the model's code" in caplog.text
    (tmp_path / "classes").mkdir()
    classes = theirs["places"]["classes"]
    result, _ = converted(settings, here, classes, rows(), tmp_path / "classes")
    assert "predicts probabilities, found classes" in result.error

    registry = Registry(settings)
    version = registry.version(MODEL, report.version)
    registry.download(version, tmp_path)
    place = {"digests": version.tags, "spec": here, "online_store": "sqlite"}
    contract, session = open_version(tmp_path, **place)
    expected = theirs["scores"]["pyfunc"]
    columns = session_inputs(here.inputs, rows())
    assert session.run([], columns)[0] == pytest.approx(expected, abs=1e-6)
    session.close()
    assert contract.file == "model.zip"
    processes = {*opened_by.read_text().split()}
    assert len(processes) >= 3  # those of the conversion, of the evaluation, of serving
    assert str(os.getpid()) not in processes
    address = f"models:/{settings.mlflow_name(MODEL)}/{report.version}"
    done = subprocess.run(
        [commands_folder() / "python", "-c", LOAD, address], cwd=CLONE,
        env=os.environ | {"MLFLOW_TRACKING_URI": settings.mlflow_address},
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == pytest.approx(expected)
    monkeypatch.setenv("GYRE_ADOPT_PICKLES", "false")
    with pytest.raises(ModelFailedError, match=remedy):
        open_version(tmp_path, **place)


def test_a_spec_without_estimators_cannot_be_trained_and_says_so(settings, here):
    with pytest.raises(SettingsError, match="gyre adopt"):
        train(settings, here, datetime.now(UTC), key="t", reason="r", who="t")


def test_a_spec_is_written_from_the_signature_and_the_service_of_a_team(
    settings, theirs, team
):
    environment = process_environment(settings) | {"GYRE_PROJECT": str(team)}
    options = ["--service", SERVICE, "--from", "labels.parquet"]
    options += ["--entity", "Driver ID", "--time", "asked", "--outcome", "reached goal"]
    done = subprocess.run(
        [commands_folder() / "gyre", "new", "theirs", "--model", theirs["places"]["run"], *options],
        cwd=team, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = load_spec("theirs", team / "models")
    assert written.entity_key == {"driver_id": "int64"}
    assert written.label.entity == {"driver_id": "Driver ID"}
    assert written.features == {"conv_rate": "float32", "conv_rate_plus_val1": "double"}
    label = written.label.model_copy(update={"source": str(team / "labels.parquet")})
    written = written.model_copy(update={"label": label})
    report = take(settings, written, theirs["places"]["run"], key="written")
    assert report.version or "not better than" in report.outcome, report.outcome
