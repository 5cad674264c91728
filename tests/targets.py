"""Which make target runs a test: each test belongs to one.

`pytest --target NAME` runs the tests of one target. `python -m tests.targets`, which `make check`
calls, collects all tests and holds them against the Makefile, `.ci/run`, the parts of `make nightly`
and docs/tests.md; with `--write` it writes the targets into the tables of that page.
"""

import ast
import io
import re
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.project import CLONE
from tests.nightly import PARTS

PAGE = CLONE / "docs" / "tests.md"
IMAGE_FILE = "tests/containers/test_serving_image.py"
STACK_FOLDERS = ("tests/faults/", "tests/loop/")
"""Tests of whole stacks, and of faults that are made for real."""
HOSTS = ("cluster", "kafka", "kubernetes")
"""Marks that are also the target of a test."""
RECIPE = re.compile(r"--target (\w+)((?: tests/[\w/.]+)*)")
PROMISE = re.compile(r"^\| .* \|$", re.MULTILINE)
TEST_FILE = re.compile(r"\]\(\.\./(tests/[\w/]+\.py)\)")


def ci_targets() -> list[str]:
    """Return the targets that `.ci/run` calls, in its order."""
    text = (CLONE / ".ci" / "run").read_text()
    return re.findall(r"^make (\w+)", text, re.MULTILINE)


def target_of(file: str, marks: Iterable[str]) -> str:
    """Return the target that runs a test.

    Args:
        file: Path of its file, from the root of the clone, with slashes.
        marks: Names of its marks.

    """
    names = set(marks)
    for host in HOSTS:
        if host in names:
            return host
    if "containers" in names:
        return "image" if file == IMAGE_FILE else "containers"
    if {"nightly", "timed"} <= names:
        return "promises"
    is_of_stack = file.startswith(STACK_FOLDERS)
    if "nightly" in names:
        return "loops" if is_of_stack else "variants"
    if is_of_stack:
        return "faults"
    return "journeys" if "journey" in names else "test"


def runs_in(target: str, file: str, marks: Iterable[str]) -> bool:
    """Return whether a target runs a test; `promises` has the timed tests of others, too."""
    names = set(marks)
    is_timed = target == "promises" and "timed" in names
    return is_timed or target_of(file, names) == target


def file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def marks_of(item: pytest.Item) -> set[str]:
    return {mark.name for mark in item.iter_markers()}


@dataclass
class Collector:
    """A plugin of pytest that keeps the targets of each file."""

    targets: dict[str, set[str]] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            target = target_of(file_of(item), marks_of(item))
            self.targets.setdefault(file_of(item), set()).add(target)


def collect() -> dict[str, set[str]]:
    """Return the targets of each file of tests.

    Raises:
        SystemExit: A file cannot be collected; what pytest says is printed before.

    """
    collector = Collector()
    output = io.StringIO()
    with redirect_stdout(output):
        code = pytest.main(
            ["--collect-only", "-qq", str(CLONE / "tests")], plugins=[collector]
        )
    if code != pytest.ExitCode.OK:
        sys.stdout.write(output.getvalue())
        raise SystemExit("pytest --collect-only: not every file can be collected")
    return collector.targets


def has_tests(path: Path) -> bool:
    """Return whether a file defines a function or a method whose name is that of a test."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(path.read_text()))
    return any(
        isinstance(node, functions) and node.name.startswith("test_") for node in nodes
    )


def problems_of(
    targets: dict[str, set[str]], makefile: str, called: Iterable[str]
) -> list[str]:
    """Return in sentences which tests nobody would run.

    Args:
        targets: Targets of each file of tests.
        makefile: Text of the Makefile.
        called: Targets that `.ci/run` or `make nightly` calls.

    """
    called_targets = {*called}
    folders: dict[str, tuple[str, ...]] = {}
    for target, paths in RECIPE.findall(makefile):
        folders[target] = (*folders.get(target, ()), *paths.split())
    problems = []
    for target in sorted(set().union(*targets.values())):
        if target not in folders:
            problems.append(f"Makefile: no recipe has --target {target}")
        if target not in called_targets:
            problems.append(f"make {target}: neither .ci/run nor make nightly calls it")
    for file, names in targets.items():
        for target in names & folders.keys():
            is_below = file.startswith(folders[target]) or not folders[target]
            if not is_below:
                problems.append(
                    f"{file}: is of make {target}, which looks in {' '.join(folders[target])}"
                )
    return problems


def with_targets(page: str, targets: dict[str, set[str]]) -> str:
    """Return a page whose rows of promises end with the targets of their tests."""
    order = (*ci_targets(), *PARTS)

    def row(match: re.Match[str]) -> str:
        files = TEST_FILE.findall(match[0])
        if not files:
            return match[0]
        promise, tests, *_ = match[0].removeprefix("| ").split(" | ")
        names = set().union(*(targets.get(file, set()) for file in files))
        in_order = [f"`{name}`" for name in order if name in names]
        return f"| {promise} | {tests.removesuffix(' |')} | {', '.join(in_order)} |"

    return PROMISE.sub(row, page)


def main(*arguments: str) -> int:
    targets = collect()
    makefile = (CLONE / "Makefile").read_text()
    problems = problems_of(targets, makefile, (*ci_targets(), *PARTS))
    for path in sorted((CLONE / "tests").rglob("*.py")):
        file = path.relative_to(CLONE).as_posix()
        if file not in targets and has_tests(path):
            problems.append(f"{file}: pytest collects none of its tests")
    page = PAGE.read_text()
    written = with_targets(page, targets)
    if "--write" in arguments:
        PAGE.write_text(written)
    elif written != page:
        problems.append("docs/tests.md: other targets: python -m tests.targets --write")
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
