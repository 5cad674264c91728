"""A dataset's module that is wrong is named, and no other dataset is touched by it."""

import json
import os
import shutil
import subprocess

from core.settings import PROJECT
from tests.preloaded import commands_folder

READ = """
import json
from feature_repo.datasets import dataset_of, load_datasets
datasets, problems = load_datasets()
owner = dataset_of("customer_features")
print(json.dumps([[dataset.name for dataset in datasets], problems, owner.name]))
"""
BROKEN = {
    "a_typo": (
        "from datetime import timedelta\n\nWINDOW = timedelta(dayz=3)\n",
        ".py:3: TypeError: 'dayz' is an invalid keyword",
    ),
    "a_torn": (
        "x = (",
        ".py:1: SyntaxError: '(' was never closed (dataset 'a_torn' cannot be imported)",
    ),
    "an_empty": ("x = 1", ".py defines no Dataset(name='an_empty')"),
}


def test_a_broken_dataset_module_is_named_with_its_line_and_the_others_load(tmp_path):
    for folder in ("feature_repo", "core", "stack"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=ignored)
    for name, (module, _) in BROKEN.items():
        (tmp_path / "feature_repo" / "datasets" / f"{name}.py").write_text(module)
    output = subprocess.check_output(
        [commands_folder() / "python", "-c", READ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    names, problems, owner = json.loads(output)
    assert (names, owner) == (["orders"], "orders")
    assert len(problems) == len(BROKEN)
    for name, (_, problem) in BROKEN.items():
        beginning = f"feature_repo/datasets/{name}{problem}"
        assert any(line.startswith(beginning) for line in problems), problems
