"""The console that is killed, and sources of it that are killed or hang."""

from __future__ import annotations

import sys
import time
from contextlib import closing, contextmanager
from html import unescape
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from mlflow_server.ledger import Ledger
from mlflow_server.roles import last_applied
from stack.environment import process_environment
from tests.conftest import answers, running, unused_port, wait_until
from tests.faults.conftest import broken
from tests.serving.load import under_load

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

ANSWERED = 2
"""Seconds within which a page answers whatever its sources do."""


@contextmanager
def console(rig: Any, **changed: Any) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    settings = rig.settings.model_copy(update={"console_port": unused_port(), **changed})
    command = [sys.executable, "-m", "monitoring.console"]
    with (
        running(command, rig.folder / "console.log", **process_environment(settings)) as process,
        httpx.Client(base_url=settings.console_address, timeout=30) as client,
    ):
        wait_until("console", lambda: answers(f"{settings.console_address}/health/live"))
        yield client, process


def page(client: httpx.Client, path: str = "/") -> str:
    began = time.monotonic()
    answer = client.get(path)
    assert time.monotonic() - began < ANSWERED
    assert answer.status_code == 200
    return answer.text


def test_predictions_do_not_notice_that_the_console_is_killed(rig: Any, served: Any) -> None:
    """26: SIGKILL while its pages are asked for."""
    with under_load(served.client) as predictions:
        with console(rig) as (client, process):
            assert f"version {served.first} since" in page(client)
            before = len(predictions)
            process.kill()
            process.wait()
            wait_until("more predictions", lambda: len(predictions) > before + 50)
        with console(rig) as (client, _):
            assert f"version {served.first} since" in page(client)
    assert {answer.status for answer in predictions} == {200}


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_without_mlflow_the_pages_say_what_is_unknown_and_why(
    rig: Any, served: Any, how: Any
) -> None:
    """26: MLflow away, before it was ever asked; predictions go on, and it is shown once back."""
    model = f"/status/{rig.spec.name}"
    with closing(Ledger(rig.settings)) as ledger:
        last = last_applied(ledger.rows(rig.spec.name), "production")
    said = f"by {last.who}: {last.why}"
    whys = ("MLflow does not answer", "unknown: no answer within 1 s")
    with console(rig) as (client, _), under_load(served.client) as predictions:
        with broken(rig, "mlflow", how):
            for path in ("/", model):
                assert any(why in page(client, path) for why in whys)
                assert said in unescape(page(client, path))  # the ledger is known
            assert "gyre_last_promotion_timestamp_seconds{" in page(client, "/metrics")
        wait_until("MLflow again", lambda: "aliases in MLflow" not in page(client))
    assert {answer.status for answer in predictions} == {200}


def test_an_mlflow_that_begins_to_hang_is_shown_as_it_was_for_half_a_minute(
    rig: Any, served: Any
) -> None:
    """26: then it is unknown, with the time of its last answer."""
    with console(rig) as (client, _):
        wait_until("all known", lambda: "aliases in MLflow" not in page(client))
        with broken(rig, "mlflow", "hangs"):
            wait_until("word of it", lambda: "aliases in MLflow" in page(client), 45)
            said = page(client)
            assert "unknown: no answer since" in said or "MLflow does not answer" in said


def test_a_serving_that_hangs_or_is_gone_is_unknown(rig: Any, served: Any) -> None:
    """26: the pages answer beside it."""
    with console(rig, serving_port=unused_port()) as (client, _):
        assert "unknown: [Errno 111] Connection refused" in page(client)
    everybody = [*psutil.Process(served.process.pid).children(recursive=True)]
    with console(rig) as (client, _):
        for process in everybody:
            process.suspend()
        try:
            assert "unknown: no answer within 1 s" in page(client)
        finally:
            for process in everybody:
                process.resume()
        wait_until("serving again", lambda: "versions in serving" not in page(client))
