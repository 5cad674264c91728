"""The loop without any addition, on a repository that plain Feast made, with a team's labels."""

import json
import shutil
import subprocess
import sys

import httpx
import pytest

from core.additions import ADDITIONS
from stack.environment import process_environment
from tests.conftest import (
    BIN,
    answers,
    mlflow_server,
    new_settings,
    running,
    wait_until,
)
from tests.support.feature_repo.team import MODEL, REQUEST, make_team
from tests.support.tools.clone import Copy

ONLY_THE_COPY = """
import sys
sys.meta_path[:] = [
    finder for finder in sys.meta_path
    if "Editable" not in getattr(finder, "__name__", "")
]
"""
"""Python runs it as sitecustomize: packages that the copy lacks are not those of the clone."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The clone without its additions, beside a team's project."""
    folder = tmp_path_factory.mktemp("copy")
    home = tmp_path_factory.mktemp("home")
    project = make_team(tmp_path_factory.mktemp("team"))
    copy = Copy(folder, new_settings(home))
    for addition in ADDITIONS:
        shutil.rmtree(folder.joinpath(*addition.package.split(".")))
    (folder / "sitecustomize.py").write_text(ONLY_THE_COPY)
    copy.environment |= {"GYRE_PROJECT": str(project), "PYTHONSAFEPATH": "1"}
    copy.environment["GYRE_WITHOUT"] = "airflow"
    copy.project = project
    return copy


def gyre(copy, *arguments):
    """Return what a command of a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, BIN / "gyre", *arguments], cwd=copy.folder, env=copy.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def predict(address, driver):
    row = {"driver_id": driver, **REQUEST}
    return httpx.post(f"{address}/models/{MODEL}/predict", json=row, timeout=30)


def test_the_loop_closes_without_an_addition_on_what_plain_feast_made(copy):
    settings = copy.settings
    with mlflow_server(settings):
        assert "ok; rows: those of the label's table" in gyre(copy, "check", MODEL)
        assert "version 1 is in production" in gyre(copy, "train", MODEL)
        log = settings.home / "serving.log"
        environment = process_environment(settings) | copy.environment
        with running([sys.executable, "-m", "serving"], log, **environment):
            address = settings.serving_address
            wait_until("serving", lambda: answers(f"{address}/health/ready"))
            answer = predict(address, 1001).json()
            assert answer["features_from"] == "online"
            assert predict(address, 77).status_code == 404
            wrong = []
            for number in range(60):
                answer = predict(address, 1001 + number % 5).json()
                actual = 1 - answer["prediction"]
                wrong.append({"request_id": answer["request_id"], "actual": actual})
            httpx.post(f"{address}/feedback", json=wrong, timeout=30)
            report = json.loads(gyre(copy, "monitor", MODEL, "--json"))
            figures = {each["name"]: each["value"] for each in report["results"]}
            assert figures["skew/share"] == 0
            assert figures["skew/vectors"] == 61
            assert report["entities"] == 5
            assert not [name for name in figures if name.startswith("freshness/")]
            decision = report["decision"]
            assert decision["rule"] == "nothing_new", decision
            # What it would learn is another model now.
            spec = copy.project / "models" / f"{MODEL}.toml"
            spec.write_text(spec.read_text().replace("seed = 7", "seed = 8"))
            report = json.loads(gyre(copy, "monitor", MODEL, "--json"))
            assert report["decision"]["action"] == "retrain", report["decision"]
            assert "version 2 is in production" in gyre(copy, "train", MODEL)

            def is_answering():
                return predict(address, 1002).json()["model_version"] == "2"

            wait_until("version 2", is_answering)
