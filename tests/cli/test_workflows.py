"""GitLab and Jenkins call what GitHub calls."""

import re

import yaml

from core.settings import PROJECT

WORKFLOWS = PROJECT / ".github" / "workflows"


def jobs_of(path):
    return yaml.safe_load(path.read_text())["jobs"]


def targets(commands):
    """Return what of the project the commands call."""
    return {*re.findall(r"\bmake \w+|\.ci/\w+|\bpytest .*", "\n".join(commands))}


def test_gitlab_and_jenkins_run_the_same_targets_as_github():
    commands = []
    for path in WORKFLOWS.glob("*.yml"):
        for job in jobs_of(path).values():
            commands += [step.get("run", "") for step in job["steps"]]
    github = targets(commands)
    assert {"make check", "make docs", "make nightly", ".ci/run"} <= github
    commands = []
    for job in yaml.safe_load((PROJECT / ".gitlab-ci.yml").read_text()).values():
        commands += [*job.get("script", ()), *job.get("after_script", ())]
    assert targets(commands) == github
    jenkins = (PROJECT / "Jenkinsfile").read_text()
    assert targets(re.findall(r"\bsh '([^']+)'", jenkins)) == github


def test_the_job_that_comments_on_a_pull_request_runs_no_code_of_it():
    jobs = jobs_of(WORKFLOWS / "models.yml")
    assert "permissions" not in jobs["train"]
    assert jobs["comment"]["permissions"] == {"pull-requests": "write"}
    uses = [step["uses"] for step in jobs["comment"]["steps"] if "uses" in step]
    assert uses == ["actions/download-artifact@v4"]
