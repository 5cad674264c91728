"""The console that is killed, and sources of it that are killed or hang."""

from __future__ import annotations

import sys
import time
from contextlib import closing, contextmanager
from html import unescape
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from mlflow_server.ledger import Ledger
from mlflow_server.roles import last_applied
from stack.environment import process_environment
from tests.conftest import answers, at_most, running, unused_port, wait_until
from tests.faults.conftest import broken, standing_still
from tests.serving.load import under_load

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

ANSWERED = 2
"""Seconds within which a page answers whatever its sources do."""
pytestmark = pytest.mark.timed


@contextmanager
def console(
    rig: Any, **changed: Any
) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    settings = rig.settings.model_copy(
        update={"console_port": unused_port(), **changed}
    )
    command = [sys.executable, "-m", "monitoring.console"]
    with (
        running(
            command, rig.folder / "console.log", **process_environment(settings)
        ) as process,
        httpx.Client(base_url=settings.console_address, timeout=600) as client,
    ):
        wait_until(
            "console", lambda: answers(f"{settings.console_address}/health/live")
        )
        yield client, process


def page(client: httpx.Client, path: str = "/") -> str:
    began = time.monotonic()
    answer = client.get(path)
    assert time.monotonic() - began < at_most(ANSWERED)
    assert answer.status_code == 200
    return unescape(answer.text)


def shows(client: httpx.Client, said: str, path: str = "/") -> None:
    """Wait for it: a source may need more than its second on a busy machine."""
    wait_until(said, lambda: said in page(client, path))


def test_predictions_do_not_notice_that_the_console_is_killed(
    rig: Any, served: Any
) -> None:
    """26: SIGKILL while its pages are asked for."""
    with under_load(served.client) as predictions:
        with console(rig) as (client, process):
            shows(client, f"version {served.first} since")
            before = len(predictions)
            process.kill()
            process.wait()
            wait_until("more predictions", lambda: len(predictions) > before + 50)
        with console(rig) as (client, _):
            shows(client, f"version {served.first} since")
    assert {answer.status for answer in predictions} == {200}


def lacks_mlflow(text: str) -> bool:
    """Whether a page says that MLflow does not answer."""
    return "mlflow: no answer" in text or "MLflow does not answer" in text


def shows_what_the_ledger_says(rig: Any, client: httpx.Client) -> None:
    with closing(Ledger(rig.settings)) as ledger:
        last = last_applied(ledger.rows(rig.spec.name), "production")
    for path in ("/", f"/status/{rig.spec.name}"):
        shows(client, f"by {last.who}: {last.why}", path)
    shows(client, "gyre_last_promotion_timestamp_seconds{", "/metrics")


def test_without_mlflow_and_serving_the_pages_say_what_is_unknown_and_why(
    rig: Any, served: Any
) -> None:
    """26: nobody listens there."""
    gone = {"mlflow_port": unused_port(), "serving_port": unused_port()}
    with console(rig, **gone) as (client, _):
        shows(client, "serving: [Errno 111] Connection refused")
        for path in ("/", f"/status/{rig.spec.name}"):
            shows(client, "MLflow does not answer", path)
        shows_what_the_ledger_says(rig, client)


def test_sources_that_hang_are_unknown_and_shown_once_they_are_back(
    rig: Any, served: Any
) -> None:
    """26: before they were ever asked, and later; predictions go on without MLflow."""
    with console(rig) as (client, _):
        with broken(rig, "mlflow", "hangs"):
            with standing_still(served.process):
                assert page(client).count(": no answer within 1 s") >= 2
            with under_load(served.client) as predictions:
                wait_until("serving again", lambda: "serving: no" not in page(client))
                shows_what_the_ledger_says(rig, client)
            assert {answer.status for answer in predictions} == {200}
        wait_until("MLflow again", lambda: not lacks_mlflow(page(client)))
        with broken(rig, "mlflow", "hangs"):
            wait_until("no MLflow", lambda: lacks_mlflow(page(client)))
