"""Versions of packages that the lock files have."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def locked(file):
    """Name and version of each package; there may be one for each version of Python."""
    line = r"^([a-z0-9-]+)(?:\[.*?\])?==(\S+)"
    return {*re.findall(line, (PROJECT / file).read_text(), re.MULTILINE)}


@pytest.mark.parametrize("image", ["serving", "gyre"])
def test_an_image_has_the_versions_that_are_tested(image):
    tested = locked("requirements.lock") | locked("extras.lock") | locked("dev.lock")
    known = {name for name, _ in tested}
    extra = locked(f"deploy/{image}.lock") - tested
    assert {name for name, _ in extra}.isdisjoint(known), "make lock"
    assert bool(extra) == (image == "gyre"), (
        "only those of Celery, of Kubernetes and of excluded.txt are not tested here"
    )


def test_locks_of_extra_packages_keep_the_base_versions():
    base = locked("requirements.lock")
    names = {name for name, _ in base}
    for file in ("extras.lock", "dev.lock", "spark.lock"):
        shared = {pair for pair in locked(file) if pair[0] in names}
        assert shared <= base, f"{file}: make lock"
    lines = (PROJECT / "excluded.txt").read_text().splitlines()
    assert names.isdisjoint(line for line in lines if not line.startswith("#"))
    assert len(names) <= 230  # with those of other systems and Pythons
