"""A stack without Airflow, as the only process of a container starts and ends it."""

import signal
import subprocess

import pytest

from core.project import PROJECT
from tests.conftest import BIN, new_settings, wait_until
from tests.support.tools.stack import MODEL, Stack

pytestmark = pytest.mark.nightly


def test_a_stack_without_airflow_ingests_trains_and_ends_on_sigterm(tmp_path):
    stack = Stack(new_settings(tmp_path / "home", demo_start=None))
    output = tmp_path / "output"
    command = [BIN / "gyre", "up", "--without", "airflow", "--stay"]
    with output.open("w") as file:
        process = subprocess.Popen(
            command, cwd=PROJECT, env=stack.environment, stdout=file, stderr=file
        )
    try:
        wait_until("up", lambda: "\nready in " in output.read_text(), process=process)
        assert "Airflow   none: nothing is ingested" in output.read_text()
        assert stack.predict().json()["model_version"] == "1"
        (row,) = stack.ledger()
        assert row["why"] == "first version, by gyre up"
        assert "nothing new to learn" in stack.run(f"train {MODEL}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        assert stack.processes() == ""
    finally:
        process.kill()
        stack.run("down")
