"""What a workflow names is there; GitLab and Jenkins call what GitHub calls."""

from __future__ import annotations

import re

import pytest
import typer
import yaml

from cli.main import typer_app
from core.settings import PROJECT, Settings

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
VERBS = typer.main.get_command(typer_app).commands
MAKEFILE = (PROJECT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
SCRIPTS = sorted((PROJECT / ".ci").iterdir())
GITLAB = PROJECT / ".gitlab-ci.yml"
JENKINS = PROJECT / "Jenkinsfile"


def of_github():
    runs = []
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            runs += [step.get("run", "") for step in job["steps"]]
    return "\n".join(runs)


def of_gitlab():
    lines = []
    for job in yaml.safe_load(GITLAB.read_text()).values():
        lines += [*job.get("script", ()), *job.get("after_script", ())]
    return "\n".join(lines)


COMMANDS = {
    "GitHub": of_github(),
    "GitLab": of_gitlab(),
    "Jenkins": "\n".join(re.findall(r"\bsh '([^']+)'", JENKINS.read_text())),
    **{path.name: path.read_text() for path in SCRIPTS},
}


@pytest.mark.parametrize("commands", COMMANDS.values(), ids=COMMANDS)
def test_every_command_of_a_workflow_exists(commands):
    commands = re.sub(r"^\s*#.*", "", commands, flags=re.MULTILINE)
    gyre = re.findall(r"\bgyre (\w+)(.*)", commands)
    for verb, rest in gyre:
        assert verb in VERBS
        options = {name for parameter in VERBS[verb].params for name in parameter.opts}
        assert set(re.findall(r"(?<![\w-])--[\w-]+", rest)) <= options
    targets = re.findall(r"\bmake (?:-C \S+ )?(\w+)", commands)
    assert set(targets) <= TARGETS
    files = re.findall(r"(?<!\S)(?:tests/|\.ci/|models/)\S*", commands)
    assert all(list(PROJECT.glob(file.rstrip(";"))) for file in files)
    assert gyre or targets or files


def test_gitlab_and_jenkins_call_what_github_calls():
    pattern = r"\bmake \w+|\.ci/\w+|\bpytest .*"
    github = set(re.findall(pattern, COMMANDS["GitHub"]))
    assert {"make check", "make docs", "make nightly", ".ci/run"} <= github
    for name in ("GitLab", "Jenkins"):
        assert set(re.findall(pattern, COMMANDS[name])) == github


def test_what_writes_to_a_pull_request_runs_no_code_of_it():
    text = (PROJECT / ".github" / "workflows" / "models.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert "permissions" not in jobs["train"]
    assert jobs["comment"]["permissions"] == {"pull-requests": "write"}
    uses = [step["uses"] for step in jobs["comment"]["steps"] if "uses" in step]
    assert uses == ["actions/download-artifact@v4"]


@pytest.mark.parametrize(
    "path", [GITLAB, JENKINS, *WORKFLOWS], ids=lambda path: path.name
)
def test_every_setting_of_a_workflow_exists(path):
    fields = {f"GYRE_{name}".upper() for name in Settings.model_fields}
    settings = set(re.findall(r"GYRE_[A-Z]+(?:_[A-Z]+)*", path.read_text()))
    assert settings <= fields
