"""A team's MLflow: its login and TLS, its artifacts, changes by hand, and two Gyres on it."""

import json
import os
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from core.errors import ArtifactError, RegistryError
from core.project import CLONE
from core.spec import load_specs
from mlflow_server.api.pages import Pages
from mlflow_server.api.registry import Registry
from mlflow_server.api.rest import read_artifact
from mlflow_server.api.tracking import Tracking
from mlflow_server.manifest import CONTRACT_FILE
from mlflow_server.model.pyfunc import ModelFile
from mlflow_server.model.registration import register
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.promotion.promote import promote, rollback
from mlflow_server.server import follower
from mlflow_server.tags import packed
from stack.environment import process_environment
from stack.machine import mlflow_problems
from tests.conftest import new_settings, running, wait_until
from tests.mlflow_server.conftest import ANN, client, stages
from tests.serving.conftest import FEATURES, tiny_onnx
from tests.support.stores.s3 import BUCKET, s3_server
from tests.support.tools.preloaded import commands_folder
from tests.support.tools.team_mlflow import USER, team_mlflow

pytestmark = pytest.mark.journey

MODEL = load_specs()[0].name
FOLLOWER = """
from mlflow_server.server import follower

follower.POLL_SECONDS /= 15
follower.main()
"""


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """MLflow behind nginx, and S3; this process and those that it starts have the login."""
    folder = tmp_path_factory.mktemp("team")
    with (
        pytest.MonkeyPatch.context() as environment,
        ExitStack() as opened,
        ThreadPoolExecutor() as threads,
    ):
        environment.setenv("HOME", str(folder))
        s3 = threads.submit(opened.enter_context, s3_server(folder, environment))
        wait_until("the variables of S3", lambda: "AWS_TIMEOUT" in os.environ)
        server = opened.enter_context(team_mlflow(folder / "server"))
        s3.result()
        for name, value in server.login.items():
            environment.setenv(name, value)
        yield server


@pytest.fixture
def installation(team, tmp_path):
    """Make installations, each with a prefix of its own."""

    def make(prefix):
        return new_settings(
            tmp_path / prefix, mlflow_url=team.address, mlflow_prefix=prefix
        )

    return make


def registered(settings, folder, experiment="runs"):
    """Train nothing, and register a tiny model as a training does."""
    tracking = Tracking(settings)
    key = f"{folder.name} {len(Registry(settings).versions(MODEL))}"
    run_id = tracking.start_or_find_run(experiment, key, key, {})
    folder.mkdir(parents=True)
    (folder / CONTRACT_FILE).write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's hints on integer columns and pip
        return register(
            settings, model=MODEL, run_id=run_id,
            exported=ModelFile(tiny_onnx(0).SerializeToString()), files=folder,
            input_example=pd.DataFrame([FEATURES]), tags={}, description="tiny",
            requirements=["onnxruntime"],
        )  # fmt: skip


@pytest.mark.parametrize("store", ["mlflow-artifacts", "s3", "file"])
def test_a_version_is_written_and_read_wherever_mlflow_keeps_its_files(
    installation, tmp_path, store
):
    settings = installation(f"{store}.")
    place = {"s3": f"s3://{BUCKET}/kept here", "file": f"file://{tmp_path}/kept"}
    client(settings).create_experiment(f"{store}.runs", place.get(store))
    version = registered(settings, tmp_path / "files")
    registry = Registry(settings)
    assert registry.damage(MODEL, version.version) == ""
    tracking = Tracking(settings)
    tracking.log_text(version.run_id, "a card", "model_card.html")
    card = Pages(settings).pages(MODEL, "runs").cards[version.version]
    assert card.run.artifacts.startswith(f"{store}:")
    content = read_artifact(settings, card.run.artifacts, card.place)
    assert content == b"a card"
    with pytest.raises(ArtifactError, match=r"^nothing\.html: "):
        read_artifact(settings, card.run.artifacts, "nothing.html")
    tracking.delete_artifacts(version.run_id, "model_card.html")
    assert tracking.list_artifacts(version.run_id, "") == []


def test_files_that_gyre_cannot_reach_are_refused_with_the_remedy(installation):
    with pytest.raises(ArtifactError, match=r"found gs://b/x: .*--serve-artifacts"):
        read_artifact(installation("g."), "gs://b/x", "model.onnx")


def test_a_wrong_login_is_one_line_with_the_user_and_the_remedy(
    installation, monkeypatch
):
    settings = installation("w.")
    assert mlflow_problems(settings) == []
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    for call in (Registry(settings).models, lambda: Tracking(settings).runs("runs")):
        with pytest.raises(RegistryError) as raised:
            call()
        text = str(raised.value)
        assert "\n" not in text
        assert f"the login of the user {USER[0]!r} (401" in text
        assert "correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in text
        assert "hidden" not in text
    (problem,) = mlflow_problems(settings)
    assert problem.startswith("GYRE_MLFLOW_URL: MLflow refuses the login of")
    monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
    (problem,) = mlflow_problems(settings)
    assert "name the file of its authority in MLFLOW_TRACKING_SERVER_CERT" in problem


def test_the_login_is_read_from_the_secrets_folder_by_mlflows_client_too(
    team, installation, tmp_path
):
    settings = installation("secrets.")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    variables = process_environment(settings)
    for name in team.login:
        (secrets / name.lower()).write_text(f"{variables.pop(name)}\n")
    code = (
        "from core.settings import load_settings\n"
        "from mlflow_server.api.registry import Registry\n"
        "from mlflow_server.api.tracking import Tracking\n"
        "settings = load_settings()\n"
        "print(Registry(settings).models(), Tracking(settings).runs('runs'))"
    )
    variables |= {
        "GYRE_SECRETS_DIR": str(secrets),
        "GYRE_MLFLOW_URL": settings.mlflow_url,
    }
    command = [commands_folder() / "python", "-c", code]
    done = subprocess.run(
        command, cwd=CLONE, env=variables, capture_output=True, check=False, text=True
    )
    assert (done.returncode, done.stdout) == (0, "{} []\n"), done.stderr


def test_two_gyres_on_one_mlflow_see_serve_and_promote_only_their_own(
    installation, tmp_path
):
    """The prefixes are alike for MLflow's LIKE, in which `_` is any character."""
    one = installation("team_a.")
    other = installation("team-a.")
    for settings, count in ((one, 2), (other, 1)):
        for number in range(count):
            registered(settings, tmp_path / f"{settings.mlflow_prefix}{number}")
    with Ledger(one) as ledger:
        promote(Registry(one), ledger, MODEL, "2", **ANN)
        promote(Registry(one), ledger, MODEL, "1", role="shadow", **ANN)
    assert {*Registry(one).models()} == {*Registry(other).models()} == {MODEL}
    assert Registry(one).aliases(MODEL) == {"production": "2", "shadow": "1"}
    assert Registry(other).aliases(MODEL) == {}
    with Ledger(other) as ledger:
        promote(Registry(other), ledger, MODEL, "1", **ANN)
    assert len(Registry(one).versions(MODEL)) == 2
    assert len(Registry(other).versions(MODEL)) == 1
    assert stages(one, f"team_a.{MODEL}") == {"1": "Staging", "2": "Production"}
    assert stages(other, f"team-a.{MODEL}") == {"1": "Production"}
    assert len(Tracking(one).runs("runs")) == 2
    assert len(Tracking(other).runs("runs")) == 1
    assert Pages(one).experiment("runs") != Pages(other).experiment("runs")
    assert MODEL not in Registry(installation("")).models()


def set_stage(settings, version, stage):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated
        client(settings).transition_model_version_stage(
            settings.mlflow_name(MODEL), version, stage
        )


def test_changes_by_hand_act_in_seconds_without_our_server(installation, tmp_path):
    assert follower.POLL_SECONDS < 5
    settings = installation("hand.")
    name = f"hand.{MODEL}"
    for number in range(3):
        registered(settings, tmp_path / f"files{number}")
    api = client(settings)
    lineage = packed({"sha256.model.onnx": "0" * 64, "sha256.serving.json": "1" * 64})
    api.set_model_version_tag(name, "3", "lineage", lineage["lineage"])
    registry = Registry(settings)
    command = [str(commands_folder() / "python"), "-c", FOLLOWER]
    variables = process_environment(settings) | {"GYRE_MLFLOW_URL": settings.mlflow_url}
    log = tmp_path / "follower.log"
    with Ledger(settings) as ledger, running(command, log, **variables):

        def newest():
            rows = [row for row in ledger.rows(MODEL) if row.applied_at]
            return (rows[-1].to_version, rows[-1].action) if rows else None

        set_stage(settings, "1", "Production")
        wait_until("a promotion by stage", lambda: newest() == ("1", "by stage"), 60)
        assert registry.aliases(MODEL) == {"production": "1"}
        api.set_registered_model_alias(name, "production", "2")
        wait_until("a row by hand", lambda: newest() == ("2", "by hand"), 60)
        wait_until("the stage", lambda: registry.stages(MODEL)["2"] == "Production", 60)
        set_stage(settings, "1", "production")  # an older version beside the newer
        wait_until("a promotion by stage", lambda: newest() == ("1", "by stage"), 60)
        wait_until("one stage", lambda: registry.stages(MODEL)["2"] == "Archived", 60)
        set_stage(settings, "3", "Production")
        wait_until("no stage", lambda: registry.stages(MODEL)["3"] == "Archived", 60)
        assert registry.stages(MODEL)["1"] == "Production"
        alerts = settings.home / "logs" / "alerts.log"
        wait_until("an alert", alerts.exists, 60)
        promote(registry, ledger, MODEL, "2", **ANN)
        wait_until("one stage", lambda: registry.stages(MODEL)["1"] == "Archived", 60)
        rollback(registry, ledger, MODEL, **ANN)
        authors = [row.who for row in ledger.rows(MODEL)]
        assert authors == ["out of band"] * 3 + ["ann"] * 2
    alert = json.loads(alerts.read_text())
    assert alert["cause"] == "stage of version 3 set back"
    assert "version 3 is damaged" in alert["message"]
    assert f"gyre train {MODEL} registers another" in alert["message"]
    assert log.read_text() == ""


def test_mlflows_client_has_no_login_but_ours(installation, monkeypatch):
    """What a person does in a notebook needs the same variables."""
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    with pytest.raises(MlflowException, match=r"not authenticated"):
        client(installation("n.")).search_registered_models()
