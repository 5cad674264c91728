"""An empty installation for each test."""

import pytest

from tests.conftest import new_settings


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path)
