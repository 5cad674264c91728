"""The workflows are YAML, and every command, option, path and setting in them is there."""

from __future__ import annotations

import re

import pytest
import typer
import yaml

from cli.main import typer_app
from core.settings import PROJECT, Settings

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
VERBS = typer.main.get_command(typer_app).commands
TARGETS = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_command_of_a_workflow_exists(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    runs = "\n".join(s["run"] for job in jobs.values() for s in job["steps"] if "run" in s)
    gyre = re.findall(r"\bgyre (\w+)(.*)", runs)
    for verb, rest in gyre:
        assert verb in VERBS
        options = {name for parameter in VERBS[verb].params for name in parameter.opts}
        assert set(re.findall(r"(?<!\S)--[\w-]+", rest)) <= options
    made = re.findall(r"\bmake (\w+)", runs)
    assert set(made) <= TARGETS
    files = re.findall(r"(?<!\S)(?:tests/|\.ci/|models/)\S*", runs)
    assert all(list(PROJECT.glob(file.rstrip(";"))) for file in files)
    assert gyre or made or files


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_setting_of_a_workflow_is_one(path):
    fields = {f"GYRE_{name}".upper() for name in Settings.model_fields}
    named = set(re.findall(r"GYRE_[A-Z]+(?:_[A-Z]+)*", path.read_text()))
    assert named <= fields


def test_models_are_trained_weekly_and_when_what_they_are_made_of_changes():
    found = yaml.safe_load((PROJECT / ".github" / "workflows" / "models.yml").read_text())
    when = found[True]  # `on`, to YAML 1.1
    assert len(when["schedule"]) == 1
    for event in ("push", "pull_request"):
        assert when[event]["paths"] == ["models/**", "feature_repo/**", "training/**"]
    assert when["push"]["branches"] == ["main"]
