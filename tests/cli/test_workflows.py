"""GitLab and Jenkins call what GitHub calls."""

import re

import yaml

from core.settings import PROJECT

WORKFLOWS = PROJECT / ".github" / "workflows"


def targets(path):
    """Return what of the project a workflow calls."""
    return {*re.findall(r"\bmake \w+|\.ci/\w+|\bpytest [\w/.]+", path.read_text())}


def test_gitlab_and_jenkins_run_the_same_targets_as_github():
    github = set().union(*map(targets, WORKFLOWS.glob("*.yml")))
    assert {"make check", "make docs", "make nightly", ".ci/run"} <= github
    assert targets(PROJECT / ".gitlab-ci.yml") == github
    assert targets(PROJECT / "Jenkinsfile") == github


def test_the_job_that_comments_on_a_pull_request_runs_no_code_of_it():
    jobs = yaml.safe_load((WORKFLOWS / "models.yml").read_text())["jobs"]
    assert "permissions" not in jobs["train"]
    assert jobs["comment"]["permissions"] == {"pull-requests": "write"}
    uses = [step["uses"] for step in jobs["comment"]["steps"] if "uses" in step]
    assert uses == ["actions/download-artifact@v4"]
