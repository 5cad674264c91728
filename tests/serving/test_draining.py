"""A server that is asked to end: who keeps a connection is told to connect anew."""

import signal
import time

import httpx
import pytest

pytestmark = pytest.mark.usefixtures("served")
DRAIN_SECONDS = 3


@pytest.mark.journey
def test_answers_go_on_after_sigterm_and_close_their_connections(rig, monkeypatch):
    monkeypatch.setenv("GYRE_SERVING_DRAIN_SECONDS", str(DRAIN_SECONDS))
    with rig.serving(home=rig.second_home()) as (client, process):
        kept = client.get("/health/live")
        assert "connection" not in kept.headers
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        closing = client.get("/health/live")
        while "connection" not in closing.headers:  # the workers hear of it later
            closing = client.get("/health/live")
        assert closing.headers["connection"] == "close"
        assert httpx.get(client.base_url.join("/health/live")).is_success
        process.wait(60)
        assert time.monotonic() - began >= DRAIN_SECONDS


def test_without_a_drain_a_server_ends_at_once(rig):
    with rig.serving(home=rig.second_home()) as (client, process):
        assert client.get("/health/live").is_success
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.wait(60)
        assert time.monotonic() - began < DRAIN_SECONDS
