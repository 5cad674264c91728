"""The empty start."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from stack.environment import process_environment
from stack.settings import PROJECT
from tests.conftest import unused_port


def test_an_empty_start_is_live_not_ready_and_says_why(served: Any) -> None:
    why = "nothing registered yet for customer_churn_model: train one"
    assert served.empty["/health/live"].json() == {"live": True}
    ready = served.empty["/health/ready"]
    assert ready.status_code == 503
    assert ready.json()["resources"]["model customer_churn_model"]["detail"] == why
    assert ready.json()["resources"]["redis"]["ok"]
    for path, form in (("/predict", "detail"), ("/v1", "error")):
        assert served.empty[path].status_code == 503
        assert served.empty[path].json()[form] == why


def test_a_second_server_of_a_home_is_refused_and_told_whose_it_is(rig: Any, served: Any) -> None:
    other = rig.settings.model_copy(update={"serving_port": unused_port()})
    second = subprocess.run(
        [sys.executable, "-m", "serving"], cwd=PROJECT, env=process_environment(other),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    said = f"{rig.settings.home} is served by process {served.process.pid} already"
    assert (second.returncode, said in second.stderr) == (1, True), second.stderr
    assert served.client.get("/metrics").status_code == 200  # its counts are where they were
