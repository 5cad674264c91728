"""The console that is killed, and sources of it that are killed or hang."""

import time
from contextlib import ExitStack
from html import unescape

import pytest

from mlflow_server.promotion.rules import last_applied
from tests.conftest import at_most, wait_until
from tests.faults.conftest import broken, more, standing_still
from tests.support.monitoring.page_text import one_line
from tests.support.serving.console import console
from tests.support.serving.load import under_load

ANSWERED = 2
"""Seconds within which a page answers whatever its sources do."""
pytestmark = pytest.mark.timed


def page(client, path="/"):
    began = time.monotonic()
    answer = client.get(path)
    assert time.monotonic() - began < at_most(ANSWERED)
    assert answer.status_code == 200
    return unescape(one_line(answer.text))


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
    with ExitStack() as stack, under_load(served.client) as predictions:
        with broken(rig, "mlflow", "hangs"):
            with standing_still(served.process):
                # The console asks its sources when it starts.
                client, process = stack.enter_context(console(rig))
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
