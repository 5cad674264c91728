"""A console on a year of monitoring runs, and its pages."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from core.spec import load_spec
from tests.conftest import new_settings
from tests.support.monitoring.year import fill
from tests.support.serving.console import console as console_beside

SPEC = load_spec("customer_churn_model")
PAGES = ("/", f"/status/{SPEC.name}", f"/data/{SPEC.dataset}", "/metrics")


def console(home):
    """A console alone: nothing else of its stack runs. The client, and the process."""
    settings = new_settings(home, demo_start=None)
    return console_beside(SimpleNamespace(settings=settings, folder=home.parent))


@pytest.fixture(scope="module")
def year(tmp_path_factory):
    home = tmp_path_factory.mktemp("year") / "home"
    fill(new_settings(home), SPEC, datetime.now(UTC))
    return home
