"""The parts of the serving and registry tests, and how they are broken."""

import json
from contextlib import contextmanager

import psutil
import pytest

from core.project import PROJECT
from core.spec import MODELS
from tests.conftest import wait_until
from tests.mlflow_server.conftest import (  # noqa: F401  (fixtures)
    ledger,
    model,
    registry,
    roles,
)
from tests.serving.conftest import SPEC, rig, served  # noqa: F401  (fixtures)
from tests.support.stores.s3 import s3_server

SPEC_TEXT = (MODELS / f"{SPEC.name}.toml").read_text()
"""Of the shipped model."""


@pytest.fixture(scope="session")
def settings(rig):
    """Of the one MLflow and the one ledger that all these tests share."""
    return rig.settings


@pytest.fixture
def s3(tmp_path, monkeypatch):
    with s3_server(tmp_path, monkeypatch) as server:
        yield server


@contextmanager
def second_server(rig):
    """Serve from a home of its own; a client of the server, which is ready, and its process."""
    with rig.serving(home=rig.second_home()) as (client, process):
        rig.known_to_be_ready(client)
        yield client, process


def workers(process):
    """Those that answer, of all that `python -m serving` started."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@contextmanager
def standing_still(process):
    """A server that does nothing until the block ends, but for a fetch that has begun."""
    stopped = [psutil.Process(process.pid), *workers(process)]
    for server in stopped:
        server.suspend()
    wait_until("SIGSTOP", lambda: {each.status() for each in stopped} == {"stopped"})
    try:
        yield
    finally:
        for server in stopped:
            server.resume()


@contextmanager
def broken(rig, part, how):
    """Redis or MLflow dead, or accepting and never answering; back when the block ends.

    Args:
        part: "redis" or "mlflow".
        how: "killed" or "hangs".

    """
    process = getattr(rig, part)
    if how == "hangs":
        with standing_still(process):
            yield
        return
    process.kill()
    process.wait()
    try:
        yield
    finally:
        getattr(rig, f"start_{part}")()


def shows(client, text):
    """Wait until the status has a text."""
    wait_until(text, lambda: text in client.get("/status").text)


def shows_no_refusal(client):
    wait_until("no refusal", lambda: "is refused:" not in client.get("/status").text)


def more(answers):
    """Wait until there are fifty more."""
    count = len(answers) + 50
    wait_until("more answers", lambda: len(answers) > count)


def alerts(settings, cause):
    """Alerts of a cause that begins so."""
    path = settings.home / "logs" / "alerts.log"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["cause"].startswith(cause)]


def write_project(folder, monkeypatch, specs):
    """A project with these specs, by name, of the servers that the test starts."""
    (folder / "feature_repo").symlink_to(PROJECT / "feature_repo")
    (folder / "models").mkdir()
    for name, text in specs.items():
        (folder / "models" / f"{name}.toml").write_text(text)
    monkeypatch.setenv("GYRE_PROJECT", str(folder))
