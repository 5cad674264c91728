"""The files of GitHub, GitLab and Jenkins, and the scripts in `.ci/`: what they call exists."""

import os
import re
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
import typer
import yaml
from croniter import croniter

from cli.main import typer_app
from core.project import PROJECT
from core.settings import Settings
from tests.conftest import BIN
from tests.nightly import PARTS

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
MODELS = PROJECT / ".github" / "workflows" / "models.yml"
NIGHT = PROJECT / ".github" / "workflows" / "nightly.yml"
GITLAB = PROJECT / ".gitlab-ci.yml"
JENKINS = PROJECT / "Jenkinsfile"
SCRIPTS = sorted((PROJECT / ".ci").iterdir())
SERVICES = ("GitHub", "GitLab", "Jenkins")
GYRE_COMMANDS = typer.main.get_command(typer_app).commands
MAKEFILE = (PROJECT / "Makefile").read_text()
TARGETS = {*re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE)}
SOURCES_OF_A_MODEL = [
    "models/**",
    "feature_engine/**",
    "feature_repo/**",
    "training/**",
]
NOW = datetime(2026, 11, 20, tzinfo=UTC)


PINNED = re.compile(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
"""An action by its commit, as a tag can be moved, with the version that it has there."""


def for_each_part(command, variable, parts):
    """Return a command for each part of the night, or as it is."""
    if variable not in command:
        return [command]
    return [command.replace(variable, part) for part in parts]


def parts_of_github():
    jobs = yaml.safe_load(NIGHT.read_text())["jobs"]
    return [entry["part"] for entry in jobs["part"]["strategy"]["matrix"]["include"]]


def parts_of_gitlab():
    (matrix,) = yaml.safe_load(GITLAB.read_text())["nightly"]["parallel"]["matrix"]
    return matrix["PART"]


def parts_of_jenkins():
    (values,) = re.findall(r"name 'PART'\s+values (.*)", JENKINS.read_text())
    return re.findall(r"'(\w+)'", values)


def commands_of_github():
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                command = step.get("run", "")
                yield from for_each_part(
                    command, "${{ matrix.part }}", parts_of_github()
                )


def commands_of_gitlab():
    for job in yaml.safe_load(GITLAB.read_text()).values():
        for command in (*job.get("script", ()), *job.get("after_script", ())):
            yield from for_each_part(command, "$PART", parts_of_gitlab())


def commands_of_jenkins():
    for command in re.findall(r"\b(?:sh|script:) '([^']+)'", JENKINS.read_text()):
        yield from for_each_part(command, "$PART", parts_of_jenkins())


COMMANDS = {
    "GitHub": [*commands_of_github()],
    "GitLab": [*commands_of_gitlab()],
    "Jenkins": [*commands_of_jenkins()],
    **{f".ci/{path.name}": [path.read_text()] for path in SCRIPTS},
}


def code(name):
    """Return all commands of a service or a script, without comments."""
    return re.sub(r"^\s*#.*", "", "\n".join(COMMANDS[name]), flags=re.MULTILINE)


def calls(name):
    """Return what of the project a service calls."""
    others = re.findall(r"\.ci/\w+|\bpytest [\w/.]+", code(name))
    return {*others, *(f"make {target}" for target in targets_of(name))}


def targets_of(name):
    """Return the targets of make that a service calls, several by one command too."""
    lines = re.findall(r"\bmake(?: -C \S+)?((?: [a-z]+)+)", code(name))
    return [target for line in lines for target in line.split()]


def crons():
    """Return each cron line of the workflows, by the name of its file."""
    lines = {}
    for path in WORKFLOWS:
        # YAML 1.1, which PyYAML reads, has `on` as a word for true.
        events = yaml.safe_load(path.read_text())[True]
        schedule = events.get("schedule", ()) if isinstance(events, dict) else ()
        for entry in schedule:
            lines[path.stem] = entry["cron"]
    return lines


@pytest.mark.parametrize("name", COMMANDS)
def test_every_target_command_option_and_file_that_is_called_exists(name):
    targets = targets_of(name)
    assert set(targets) <= TARGETS
    gyre_calls = re.findall(r"\bgyre (\w+)(.*)", code(name))
    for command, arguments in gyre_calls:
        assert command in GYRE_COMMANDS
        parameters = GYRE_COMMANDS[command].params
        options = {option for parameter in parameters for option in parameter.opts}
        assert set(re.findall(r"(?<![\w-])--[\w-]+", arguments)) <= options
    files = re.findall(r"(?<![\w/.])(?:tests|\.ci)/[\w/.]+", code(name))
    assert [file for file in files if not (PROJECT / file).exists()] == []
    assert targets or gyre_calls


@pytest.mark.parametrize("name", COMMANDS)
def test_a_shell_can_read_every_command(name):
    for command in COMMANDS[name]:
        shell = ["sh", "-n", "-c", command]
        done = subprocess.run(shell, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_can_be_started(path):
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/bin/sh\n")


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        (("vendor.github-workflows",), WORKFLOWS),
        (("vendor.gitlab-ci", "--data-transform", "gitlab-ci"), [GITLAB]),
    ],
    ids=SERVICES[:2],
)
def test_the_files_match_the_schema_that_is_published_for_them(schema, files):
    """The schemas are those of the package check-jsonschema."""
    command = [BIN / "check-jsonschema", "--builtin-schema", *schema, *files]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "path", [*WORKFLOWS, GITLAB, JENKINS, *SCRIPTS], ids=lambda path: path.name
)
def test_every_setting_exists(path):
    fields = {f"GYRE_{name}".upper() for name in Settings.model_fields}
    names = re.findall(r"\bGYRE_[A-Z]+(?:_[A-Z]+)*", path.read_text())
    assert set(names) <= fields


def test_gitlab_and_jenkins_run_the_same_targets_as_github():
    github = calls("GitHub")
    night = {f"make {part}" for part in PARTS}
    changes = {"make test", "make journeys", "make docs", ".ci/run"}
    assert night | changes <= github
    assert calls("GitLab") == github
    assert calls("Jenkins") == github


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit(path):
    actions = re.findall(r"\buses: (.*)", path.read_text())
    assert [action for action in actions if not PINNED.fullmatch(action)] == []
    assert actions


def test_cron_lines_are_valid_and_come_daily_and_weekly():
    lines = crons()
    assert lines.keys() == {"models", "nightly"}
    for name, days in (("models", 7), ("nightly", 1)):
        times = croniter(lines[name], NOW, ret_type=datetime)
        first = times.get_next()
        assert times.get_next() - first == timedelta(days=days)
    (line,) = re.findall(r"\bcron\(.*?'(H[^']+)'", JENKINS.read_text())
    assert croniter.is_valid(line, hash_id=b"the name of a job")


def test_models_are_validated_trained_and_evaluated_weekly_and_on_push():
    """A training promotes by itself, if its gates pass: tests/training/test_chain.py."""
    workflow = yaml.safe_load(MODELS.read_text())
    events = workflow[True]
    assert events["push"] == {"branches": ["main"], "paths": SOURCES_OF_A_MODEL}
    assert events["pull_request"] == {"paths": SOURCES_OF_A_MODEL}
    assert [entry["cron"] for entry in events["schedule"]] == [crons()["models"]]
    for pattern in SOURCES_OF_A_MODEL:
        assert (PROJECT / pattern.removesuffix("/**")).is_dir()

    steps = [step.get("run", "") for step in workflow["jobs"]["train"]["steps"]]
    order = re.findall(r"make check|pytest \S+|\.ci/models|make down", "\n".join(steps))
    validations = ["make check", "pytest tests/core/test_spec.py"]
    assert order == [*validations, ".ci/models", "make down"]
    gyre_calls = re.findall(r"\bgyre (\w+)", code(".ci/models"))
    assert gyre_calls == ["env", "ingest", "train", "evaluation", "ledger"]
    # Only for a pull request it trains where nothing is new.
    assert re.findall(
        r"\S*--force\S*", code(".ci/models").partition("gyre train")[2]
    ) == ["${BASE:+--force}"]


def test_the_job_that_comments_on_a_pull_request_runs_no_code_of_it():
    jobs = yaml.safe_load(MODELS.read_text())["jobs"]
    assert "permissions" not in jobs["train"]
    assert jobs["comment"]["permissions"] == {"pull-requests": "write"}
    uses = [step["uses"] for step in jobs["comment"]["steps"] if "uses" in step]
    assert [use.partition("@")[0] for use in uses] == ["actions/download-artifact"]
