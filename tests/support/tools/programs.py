"""Tests that need a program which `make journeys` installs where it is missing."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from docs.browser import NAMES


def needs(*programs: str) -> Callable[[Any], Any]:
    """Return what marks a test that needs one of some programs, of several names of one."""
    is_missing = not any(map(shutil.which, programs))
    reason = f"no {programs[0]} here: make journeys installs it"
    skip = pytest.mark.skipif(is_missing, reason=reason)

    def mark(test: Any) -> Any:
        return pytest.mark.journey(skip(test))

    return mark


needs_chromium = needs(*NAMES)
