"""A copy of the project without the additions that can be left out: commands and DAGs work."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from core.additions import ADDITIONS
from tests.conftest import BIN, new_settings
from tests.support.tools.clone import Copy
from tests.support.tools.dag_reader import read

LEFT_OUT = (
    "monitoring.console",
    "monitoring.trials",
    "operations",
    "serving.additions",
)
ONLY_THE_COPY = """
import sys
sys.meta_path[:] = [
    finder for finder in sys.meta_path
    if "Editable" not in getattr(finder, "__name__", "")
]
"""
"""Python runs it as sitecustomize: packages that the copy lacks are not those of the clone."""
CANARY = '[rollout]\npolicy = "canary"\n\n[[estimators]]'


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    copy = Copy(folder, new_settings(tmp_path_factory.mktemp("home")))
    for package in LEFT_OUT:
        shutil.rmtree(folder.joinpath(*package.split(".")))
    (folder / "sitecustomize.py").write_text(ONLY_THE_COPY)
    return copy


def python(copy, *arguments, code=0):
    """Return what a program of a fresh Python prints, errors last."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy.folder, env=copy.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = f"{done.stdout}{done.stderr}"
    assert done.returncode == code, output
    return output


def test_the_help_lacks_the_verbs_of_what_is_left_out_and_no_others(copy):
    help_text = python(copy, BIN / "gyre", "--help")
    verbs = {*re.findall(r"^│ (\w+) ", help_text, re.MULTILINE)}
    for addition in ADDITIONS:
        is_left_out = addition.package in LEFT_OUT
        assert {*addition.verbs} & verbs == (
            set() if is_left_out else {*addition.verbs}
        )
    assert {"up", "status", "train", "monitor", "promote"} <= verbs
    assert "No such command 'backup'" in python(
        copy, BIN / "gyre", "backup", "x", code=2
    )


def test_the_status_without_the_console_has_processes_and_memory_and_says_so(copy):
    text = python(copy, BIN / "gyre", "status", code=1)
    assert (
        "models are not shown: the package monitoring.console is not installed" in text
    )
    assert "no supervisor is running here" in text
    assert "MiB" in text
    document = json.loads(python(copy, BIN / "gyre", "status", "--json", code=1))
    assert (document["up"], document["processes"]) == (False, [])


def test_programs_of_the_stack_are_those_of_the_packages_that_are_there(copy):
    code = "import stack.programs as s; print([p.name for p in s.PROGRAMS])"
    output = python(copy, "-c", code)
    assert "consumer" in output
    assert "console" not in output


@pytest.mark.journey
def test_dags_of_what_is_left_out_are_not_made_and_all_others_are(copy, tmp_path):
    spec = copy.folder / "models" / "customer_churn_model.toml"
    spec.write_text(spec.read_text().replace("[[estimators]]", CANARY, 1))
    bag = read(tmp_path, copy.folder)
    assert bag["errors"] == {}
    kinds = {name.partition("_")[0] for name in bag["dags"]}
    assert kinds == {"ingest", "train", "monitor", "score"}


def test_a_demo_with_a_canary_names_the_package_that_it_lacks(copy):
    message = "gyre: --canary: expected the package monitoring.trials, found none"
    assert message in python(copy, BIN / "gyre", "demo", "--canary", code=2)
