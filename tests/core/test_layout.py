"""Folders that a reader takes in at one sight, and tests that stand alone."""

import re
import subprocess
from collections import Counter
from pathlib import PurePath

from core.project import CLONE

MOST_MODULES = 15
COMMAND = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
FILES = subprocess.check_output(COMMAND, cwd=CLONE, text=True).split()
NOT_COUNTED = {"__init__.py", "conftest.py"}


def test_no_folder_has_more_modules_than_a_reader_takes_in():
    modules = [PurePath(file) for file in FILES if (CLONE / file).exists()]
    counts = Counter(
        module.parent for module in modules if module.name not in NOT_COUNTED
    )
    assert {
        str(folder): count for folder, count in counts.items() if count > MOST_MODULES
    } == {}


def test_no_test_module_imports_from_another():
    pattern = re.compile(r"^\s*from tests\.[a-z_.]*\btest_", re.MULTILINE)
    imports = [
        file
        for file in FILES
        if file.startswith(("tests/", "benchmarks/"))
        and (CLONE / file).exists()
        and pattern.search((CLONE / file).read_text())
    ]
    assert imports == []
