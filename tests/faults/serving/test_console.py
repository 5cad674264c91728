"""The console that is killed, and sources of it that are killed or hang."""

import sys
import time
from contextlib import contextmanager
from html import unescape

import httpx
import pytest

from mlflow_server.roles import last_applied
from stack.environment import process_environment
from tests.conftest import answers, at_most, running, unused_port, wait_until
from tests.faults.conftest import broken, more, standing_still
from tests.support.load import under_load

ANSWERED = 2
"""Seconds within which a page answers whatever its sources do."""
pytestmark = pytest.mark.timed


@contextmanager
def console(rig, **changed):
    changes = {"console_port": unused_port()} | changed
    settings = rig.settings.model_copy(update=changes)
    address = settings.console_address
    command = [sys.executable, "-m", "monitoring.console"]
    log = rig.folder / "console.log"
    with (
        running(command, log, **process_environment(settings)) as process,
        httpx.Client(base_url=address, timeout=600) as client,
    ):
        wait_until("console", lambda: answers(f"{address}/health/live"))
        yield client, process


def page(client, path="/"):
    began = time.monotonic()
    answer = client.get(path)
    assert time.monotonic() - began < at_most(ANSWERED)
    assert answer.status_code == 200
    return unescape(answer.text)


def shows(client, text, path="/"):
    """Wait for a text: a source may need more than its second on a busy machine."""
    wait_until(text, lambda: text in page(client, path))


def lacks_mlflow(text):
    """Whether a page says that MLflow does not answer."""
    return "mlflow: no answer" in text or "MLflow does not answer" in text


def test_predictions_continue_while_the_console_or_its_sources_fail(
    rig, served, ledger
):
    """26: sources hang before the console asked them, and later; it is killed."""
    row = last_applied(ledger.rows(rig.spec.name), "production")
    with console(rig) as (client, process), under_load(served.client) as predictions:
        with broken(rig, "mlflow", "hangs"):
            with standing_still(served.process):
                assert page(client).count(": no answer within 1 s") >= 2
            wait_until("serving again", lambda: "serving: no" not in page(client))
            for path in ("/", f"/status/{rig.spec.name}"):
                shows(client, f"by {row.who}: {row.why}", path)
        wait_until("MLflow again", lambda: not lacks_mlflow(page(client)))
        with broken(rig, "mlflow", "hangs"):
            wait_until("no MLflow", lambda: lacks_mlflow(page(client)))
        process.kill()
        more(predictions)
    assert {answer.status for answer in predictions} == {200}
