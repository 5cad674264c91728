"""Requests made up from the server's own OpenAPI document."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from core.settings import PROJECT

SKIPPED = "^/events/"
"""What is made up would change the features that other tests look at."""


@pytest.mark.parametrize(
    "requests",
    [1_000, pytest.param(10_000, marks=pytest.mark.nightly)],
)
def test_generated_requests_get_no_5xx_and_nothing_the_document_does_not_tell(
    rig: Any, served: Any, requests: int
) -> None:
    url = served.client.base_url
    command = [sys.executable, "-m", "tests.serving.generated_requests", str(requests)]
    command += [f"http://{url.host}:{url.port}", SKIPPED]
    done = subprocess.run(
        command, cwd=PROJECT, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = {
        int(k): count for k, count in json.loads(done.stdout.splitlines()[-1]).items()
    }
    assert sum(statuses.values()) >= requests
    assert statuses[200] >= requests / 10
    assert all(200 <= status < 500 for status in statuses)
    assert rig.predict(served.client).status_code == 200
    assert served.process.poll() is None
