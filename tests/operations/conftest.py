"""An empty installation for each test."""

from tests.monitoring.conftest import settings  # noqa: F401
from tests.support.feature_engine.installation import applied, template  # noqa: F401
