"""An empty installation for each test."""

from tests.monitoring.conftest import settings  # noqa: F401
