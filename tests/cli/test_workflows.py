"""What a workflow names is there; GitLab and Jenkins call what GitHub calls."""

from __future__ import annotations

import json
import re
import subprocess

import jsonschema
import pytest
import typer
import yaml

from cli.main import typer_app
from core.settings import PROJECT, Settings

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
VERBS = typer.main.get_command(typer_app).commands
TARGETS = set(
    re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
)


SCRIPTS = sorted((PROJECT / ".ci").iterdir())
GITLAB, JENKINS = PROJECT / ".gitlab-ci.yml", PROJECT / "Jenkinsfile"
SCHEMA = PROJECT / "tests" / "cli" / "gitlab-ci.schema.json"
"""https://gitlab.com/gitlab-org/gitlab/-/blob/master/app/assets/javascripts/editor/schema/ci.json
as check-jsonschema 0.39.0 ships it, without its descriptions. MIT, GitLab B.V."""


def of_github():
    jobs = [
        job
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text())["jobs"].values()
    ]
    return "\n".join(step.get("run", "") for job in jobs for step in job["steps"])


def of_gitlab():
    jobs = [
        job for job in yaml.safe_load(GITLAB.read_text()).values() if "script" in job
    ]
    lines = [
        line for job in jobs for line in (*job["script"], *job.get("after_script", ()))
    ]
    return "\n".join(lines)


def of_jenkins():
    return "\n".join(re.findall(r"\bsh '([^']+)'", JENKINS.read_text()))


def called(runs):
    """Targets of make, scripts and tests, in the order of the alphabet."""
    return sorted(set(re.findall(r"\bmake \w+|\.ci/\w+|\bpytest .*", runs)))


@pytest.mark.parametrize(
    "runs",
    [of_github(), of_gitlab(), of_jenkins(), *(path.read_text() for path in SCRIPTS)],
    ids=["GitHub", "GitLab", "Jenkins", *(path.name for path in SCRIPTS)],
)
def test_every_command_of_a_workflow_exists(runs):
    runs = re.sub(r"^\s*#.*", "", runs, flags=re.MULTILINE)
    gyre = re.findall(r"\bgyre (\w+)(.*)", runs)
    for verb, rest in gyre:
        assert verb in VERBS
        options = {name for parameter in VERBS[verb].params for name in parameter.opts}
        assert set(re.findall(r"(?<![\w-])--[\w-]+", rest)) <= options
    made = re.findall(r"\bmake (?:-C \S+ )?(\w+)", runs)
    assert set(made) <= TARGETS
    files = re.findall(r"(?<!\S)(?:tests/|\.ci/|models/)\S*", runs)
    assert all(list(PROJECT.glob(file.rstrip(";"))) for file in files)
    assert gyre or made or files


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_that_a_shell_reads(path):
    subprocess.run(["sh", "-n", path], check=True)
    assert path.stat().st_mode & 0o111


def test_gitlab_and_jenkins_call_what_github_calls():
    assert called(of_gitlab()) == called(of_github())
    assert called(of_jenkins()) == called(of_github())
    assert {"make check", "make docs", "make nightly", ".ci/run"} <= set(
        called(of_github())
    )


def test_gitlabs_file_is_one_by_its_published_schema():
    content = yaml.safe_load(GITLAB.read_text())
    jsonschema.validate(content, schema := json.loads(SCHEMA.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            content | {"check": {"script": ["true"], "tagss": []}}, schema
        )


def test_what_writes_to_a_pull_request_runs_no_code_of_it():
    jobs = yaml.safe_load(
        (PROJECT / ".github" / "workflows" / "models.yml").read_text()
    )["jobs"]
    assert "permissions" not in jobs["train"]
    assert jobs["comment"]["permissions"] == {"pull-requests": "write"}
    uses = [step["uses"] for step in jobs["comment"]["steps"] if "uses" in step]
    assert uses == ["actions/download-artifact@v4"]
    assert ".ci/models" in jobs["train"]["steps"][-3]["run"]


@pytest.mark.parametrize(
    "path", [GITLAB, JENKINS, *WORKFLOWS], ids=lambda path: path.name
)
def test_every_setting_of_a_workflow_is_one(path):
    fields = {f"GYRE_{name}".upper() for name in Settings.model_fields}
    named = set(re.findall(r"GYRE_[A-Z]+(?:_[A-Z]+)*", path.read_text()))
    assert named <= fields


def test_models_are_trained_weekly_and_when_what_they_are_made_of_changes():
    found = yaml.safe_load(
        (PROJECT / ".github" / "workflows" / "models.yml").read_text()
    )
    when = found[True]  # `on`, to YAML 1.1
    assert len(when["schedule"]) == 1
    for event in ("push", "pull_request"):
        assert when[event]["paths"] == ["models/**", "feature_repo/**", "training/**"]
    assert when["push"]["branches"] == ["main"]
