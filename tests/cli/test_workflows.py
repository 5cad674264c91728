"""GitLab and Jenkins call what GitHub calls."""

from __future__ import annotations

import re

import yaml

from core.settings import PROJECT

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
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
}


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
