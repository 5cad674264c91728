"""docs/how-to/pipelines.md: its files for DVC and Kubeflow, run by these tools as it says."""

import json
import re

import pytest
import yaml

from core.project import CLONE
from mlflow_server.api.registry import Registry
from tests.conftest import new_settings
from tests.support.tools.clone import Copy, few_orders, mlflow_and_redis

PAGE = (CLONE / "docs" / "how-to" / "pipelines.md").read_text()
(DVC_FILE,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(KUBEFLOW_FILE,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
DVC, DVC_ADD, KUBEFLOW = re.findall(
    r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
)
MODEL = "customer_churn_model"
IN_DVC = 'export PATH="$PWD/.venv-dvc/bin:$PATH"; cd pipelines; '
RUN_LOCALLY = """
cd pipelines
../.venv-kubeflow/bin/python -c '
from kfp import local
from kubeflow import loop
local.init(local.SubprocessRunner(use_venv=False), pipeline_root="../outputs")
loop()'
"""
SECONDS = 1700
STAGES = ["check", "publish", "ingest", "train", "evaluate", "score", "monitor"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project with the page's files, under a Git of its own, beside MLflow and Redis."""
    folder = tmp_path_factory.mktemp("copies")
    settings = new_settings(folder / ".gyre", demo_start=None)
    project = Copy(folder, settings)
    project.environment["GYRE_PROJECT"] = str(folder)
    project.run("git init -q")
    (folder / "pipelines").mkdir()
    (folder / "pipelines" / "dvc.yaml").write_text(DVC_FILE)
    (folder / "pipelines" / "kubeflow.py").write_text(KUBEFLOW_FILE)
    with mlflow_and_redis(settings):
        yield project


def dvc_commands():
    pipeline = yaml.safe_load(DVC_FILE)
    (names,) = pipeline["vars"]
    commands = {}
    for stage, content in pipeline["stages"].items():
        command = re.sub(r"\$\{(\w+)\}", lambda part: names[part[1]], content["cmd"])
        commands[stage] = re.sub(r" > \S+$", "", command).replace("../", "")
    return commands


def stages_run(output):
    return re.findall(r"^Running stage '(\w+)'", output, re.MULTILINE)


@pytest.mark.nightly
def test_dvc_runs_changed_stages_and_those_after_them(copy):
    output = copy.run(DVC, timeout=SECONDS)
    assert stages_run(output) == STAGES
    assert "evaluation.challenger.log_loss" in output
    assert Registry(copy.settings).production(MODEL) == "1"
    evaluation = copy.folder / "pipelines" / "evaluation.json"
    assert json.loads(evaluation.read_text())["version"] == "1"
    repeat = f"{IN_DVC} dvc repro"
    assert stages_run(copy.run(repeat)) == []
    copy.run(IN_DVC + DVC_ADD)
    copy.run("git add -A . && git -c user.name=a -c user.email=a@b commit -qm first")

    spec = copy.folder / "models" / f"{MODEL}.toml"
    spec.write_text(spec.read_text().replace("seed = ", "seed = 1"))
    output = copy.run(repeat, timeout=SECONDS)
    # Rows and features are as they were.
    assert stages_run(output) == STAGES[:1] + STAGES[3:]
    assert json.loads(evaluation.read_text())["evaluation"]["champion"]
    difference = copy.run(f"{IN_DVC} dvc metrics diff")
    assert "evaluation.challenger.log_loss" in difference
    assert stages_run(copy.run(repeat)) == []
    earlier_rows_come_back(copy)


def earlier_rows_come_back(copy):
    rows = copy.folder / "data" / "cdnow_orders.parquet"
    kept_rows = copy.folder / "pipelines" / "rows.parquet"
    earlier = rows.read_bytes()
    assert kept_rows.read_bytes() == earlier
    few_orders(rows)
    copy.run(IN_DVC + DVC_ADD)
    assert kept_rows.read_bytes() == rows.read_bytes() != earlier
    checkout = (
        "git checkout -q rows.parquet.dvc && dvc checkout --quiet rows.parquet.dvc"
    )
    copy.run(f"{IN_DVC} {checkout}")
    assert kept_rows.read_bytes() == earlier
    rows.write_bytes(earlier)


@pytest.mark.nightly
def test_kubeflow_compiles_the_same_stages_and_runs_them(copy):
    copy.run(KUBEFLOW, timeout=SECONDS)
    file = copy.folder / "pipelines" / "kubeflow.yaml"
    pipeline = yaml.safe_load(file.read_text())["root"]
    tasks = pipeline["dag"]["tasks"]
    commands = {}
    for task in tasks.values():
        text = task["inputs"]["parameters"]["command"]["runtimeValue"]["constant"]
        for name, parameter in pipeline["inputDefinitions"]["parameters"].items():
            channel = f"{{{{$.inputs.parameters['pipelinechannel--{name}']}}}}"
            text = text.replace(channel, parameter["defaultValue"])
        text = text.replace('"${GYRE_PROJECT:-.}/feature_repo"', "feature_repo")
        commands[task["taskInfo"]["name"]] = text
    assert commands == dvc_commands()
    predecessors = [task.get("dependentTasks", []) for task in tasks.values()]
    assert predecessors == [[], *([name] for name in [*tasks][:-1])]

    output = copy.run(RUN_LOCALLY, timeout=SECONDS)
    assert "finished with status SUCCESS" in re.sub(r"\x1b\[\d*m", "", output)
    files = [*copy.folder.glob("outputs/*/*/*.json")]
    outputs = [json.loads(file.read_text()) for file in files]
    reports = [output["parameterValues"]["Output"] for output in outputs]
    assert len(reports) == len(STAGES)
    for word in (f"{MODEL}: ok", '"outcome"', '"challenger"', '"verdict"'):
        assert any(word in report for report in reports)
    assert Registry(copy.settings).production(MODEL)
