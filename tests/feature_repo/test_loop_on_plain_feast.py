"""The loop without any addition, on a repository that plain Feast made, with a team's labels."""

import json
import shutil
import subprocess

import httpx
import pytest

from core.additions import ADDITIONS
from stack.environment import process_environment
from tests.conftest import (
    answers,
    mlflow_server,
    new_settings,
    running,
    wait_until,
)
from tests.support.feature_repo.team import MODEL, REQUEST, make_team
from tests.support.tools.clone import Copy
from tests.support.tools.preloaded import commands_folder

pytestmark = pytest.mark.journey

IN_THE_COPY = """
import os, runpy, sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

sys.path.remove("")  # the working directory
sys.meta_path[:] = [
    finder for finder in sys.meta_path
    if "Editable" not in getattr(finder, "__name__", "")
]
packages = set()
for name in os.environ["PACKAGES"].split():
    assert name not in sys.modules, name
    spec = find_spec(name)
    if spec:
        assert Path(spec.origin).is_relative_to(os.environ["PYTHONPATH"]), spec
        packages.add(name)
assert packages == {*os.environ["PACKAGES"].split()} - {*os.environ["LACKING"].split()}
command, *sys.argv[1:] = sys.argv[1:]
if command == "gyre":
    (entry_point,) = entry_points(group="console_scripts", name=command)
    sys.exit(entry_point.load()())
runpy.run_module(command, run_name="__main__", alter_sys=True)
"""
"""Runs a program or a module in the fork of a process that has imported libraries alone: packages
that the copy lacks are not those of the clone, and all others are the copy's."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The clone without its additions, beside a team's project."""
    folder = tmp_path_factory.mktemp("copy")
    home = tmp_path_factory.mktemp("home")
    project = make_team(tmp_path_factory.mktemp("team"))
    copy = Copy(folder, new_settings(home))
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    additions = {addition.package for addition in ADDITIONS}
    for package in additions:
        shutil.rmtree(folder.joinpath(*package.split(".")))
    copy.environment |= {
        "GYRE_PROJECT": str(project),
        "GYRE_WITHOUT": "airflow",
        "PACKAGES": " ".join(packages),
        "LACKING": " ".join(additions),
    }
    copy.project = project
    return copy


def command(name, *arguments):
    """A command of the copy, by name of a program or of a module."""
    return [str(commands_folder() / "python"), "-c", IN_THE_COPY, name, *arguments]


def gyre(copy, *arguments):
    """Return what a command prints."""
    done = subprocess.run(
        command("gyre", *arguments), cwd=copy.folder, env=copy.environment,
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
        with running(command("serving"), log, **environment):
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
