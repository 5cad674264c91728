"""The stages as a DVC and as a Kubeflow pipeline: the same commands, run by their own tools."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import yaml

from core.settings import CLONE
from feature_repo.feast_config import write_feast_config
from mlflow_server.registry import Registry
from tests.cli.clone import Copy
from tests.conftest import mlflow_server, new_settings, redis_server
from tests.preloaded import commands_folder

FOLDER = CLONE / "deploy" / "pipelines"
MODEL = "customer_churn_model"
LOCAL = """
from kfp import local
from kubeflow import loop

local.init(local.SubprocessRunner(use_venv=False), pipeline_root="../../outputs")
loop()
"""
SECONDS = 1700
STAGES = ["check", "publish", "ingest", "train", "evaluate", "score", "monitor"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project under a Git of its own, beside MLflow and Redis."""
    folder = tmp_path_factory.mktemp("copies")
    settings = new_settings(folder / ".gyre", demo_start=None)
    made = Copy(folder, settings)
    made.run("git init -q")
    mlflow = mlflow_server(settings, commands_folder() / "python")
    with mlflow, redis_server(settings.redis_port, settings.home):
        write_feast_config(settings)
        yield made


def run(copy, command, tool):
    """Run it where the pipelines are, with DVC or KFP first; return what it said."""
    subprocess.run(
        ["make", "--silent", f".venv-{tool}/gyre.stamp"], cwd=CLONE, check=True
    )
    path = f"{CLONE / f'.venv-{tool}' / 'bin'}:{copy.environment['PATH']}"
    environment = {"PATH": path, "GYRE_PROJECT": str(copy.folder)}
    return copy.run(f"cd deploy/pipelines && {command}", timeout=SECONDS, **environment)


def dvc_commands():
    pipeline = yaml.safe_load((FOLDER / "dvc.yaml").read_text())
    names = {name: text for each in pipeline["vars"] for name, text in each.items()}
    found = {}
    for name, stage in pipeline["stages"].items():
        command = re.sub(r"\$\{(\w+)\}", lambda part: names[part[1]], stage["cmd"])
        found[name] = re.sub(r" > \S+$", "", command).replace("../../", "")
    return found


def test_no_pipeline_is_longer_than_a_page():
    files = (FOLDER / "dvc.yaml", FOLDER / "kubeflow.py")
    assert all(len(file.read_text().splitlines()) <= 90 for file in files)
    assert [*dvc_commands()] == STAGES


@pytest.mark.nightly
def test_dvc_runs_what_changed_and_what_follows_from_it(copy):
    def repro():
        said = run(copy, "dvc repro", "dvc")
        return re.findall(r"^Running stage '(\w+)'", said, re.MULTILINE)

    assert repro() == STAGES
    folder, registry = copy.folder / "deploy" / "pipelines", Registry(copy.settings)
    assert registry.production(MODEL) == "1"
    assert json.loads((folder / "evaluation.json").read_text())["version"] == "1"
    assert "evaluation.challenger.log_loss" in run(copy, "dvc metrics show", "dvc")
    assert repro() == []
    run(
        copy,
        "git add -A . && git -c user.name=a -c user.email=a@b commit -qm first",
        "dvc",
    )

    spec = copy.folder / "models" / f"{MODEL}.toml"
    spec.write_text(spec.read_text().replace("seed = ", "seed = 1"))
    assert repro() == STAGES[:1] + STAGES[3:]  # rows and features are as they were
    assert json.loads((folder / "evaluation.json").read_text())["evaluation"][
        "champion"
    ]
    assert "evaluation.challenger.log_loss" in run(copy, "dvc metrics diff", "dvc")
    assert repro() == []


@pytest.mark.nightly
def test_kubeflow_compiles_the_same_stages_and_runs_them(copy):
    run(copy, "python kubeflow.py", "kubeflow")
    pipeline = yaml.safe_load(
        (copy.folder / "deploy" / "pipelines" / "kubeflow.yaml").read_text()
    )
    tasks = pipeline["root"]["dag"]["tasks"].values()
    names = pipeline["root"]["inputDefinitions"]["parameters"]
    commands = {}
    for task in tasks:
        text = task["inputs"]["parameters"]["command"]["runtimeValue"]["constant"]
        for name, parameter in names.items():
            channel = f"{{{{$.inputs.parameters['pipelinechannel--{name}']}}}}"
            text = text.replace(channel, parameter["defaultValue"])
        here = text.replace('"${GYRE_PROJECT:-.}/feature_repo"', "feature_repo")
        commands[task["taskInfo"]["name"]] = here
    assert commands == dvc_commands()
    after = [task.get("dependentTasks", []) for task in tasks]
    assert after == [[], *([name] for name in [*pipeline["root"]["dag"]["tasks"]][:-1])]

    said = run(copy, f"python -c '{LOCAL}'", "kubeflow")
    assert "Pipeline 'gyre' finished with status SUCCESS" in re.sub(
        r"\x1b\[\d*m", "", said
    )
    outputs = map(
        json.loads, (f.read_text() for f in copy.folder.glob("outputs/*/*/*.json"))
    )
    reports = [output["parameterValues"]["Output"] for output in outputs]
    assert len(reports) == len(STAGES)
    for word in (f"{MODEL}: ok", '"outcome"', '"challenger"', '"verdict"'):
        assert any(word in report for report in reports)
    assert Registry(copy.settings).production(MODEL)
