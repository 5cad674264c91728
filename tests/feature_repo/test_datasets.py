"""A dataset's module that is wrong is named, and no other dataset is touched by it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from core.settings import PROJECT

READ = """
import json
from feature_repo.datasets import dataset_of, load_datasets
datasets, broken = load_datasets()
owner = dataset_of("customer_features")
print(json.dumps([[each.name for each in datasets], broken, owner.name]))
"""
TORN = "from datetime import timedelta\n\nWINDOW = timedelta(dayz=3)\n"


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (TORN, ".py:3: TypeError: 'dayz' is an invalid keyword"),
        ("x = (", ".py:1: SyntaxError: '(' was never closed (dataset 'a_torn' cannot be imported)"),
        ("x = 1", ".py defines no Dataset(name='a_torn')"),
    ],
)
def test_a_broken_module_is_named_with_its_line_and_the_others_are_there(tmp_path, module, problem):
    for room in ("feature_repo", "core", "stack"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / room, tmp_path / room, ignore=ignored)
    (tmp_path / "feature_repo" / "datasets" / "a_torn.py").write_text(module)
    done = subprocess.run(
        [sys.executable, "-c", READ], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names, (broken,), owner = json.loads(done.stdout)
    assert (names, owner) == (["orders"], "orders")
    assert broken.startswith(f"feature_repo/datasets/a_torn{problem}")
