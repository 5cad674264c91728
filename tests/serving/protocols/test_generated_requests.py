"""Requests that schemathesis makes up from the server's own OpenAPI document."""

import re
import subprocess

import pytest

from tests.conftest import BIN

CONFIG = """
seed = 7
hooks = "tests.serving.protocols.generated_bodies"
checks.negative_data_rejection.expected-statuses = [400, 404, 405, 413, 415, 422]
[phases]
examples.enabled = false
stateful.enabled = false
[generation]
database = "none"
no-shrink = true
# Bodies whose parts must fit each other (a shape and its values), which no schema describes.
[[operations]]
include-path-regex = "(/invocations|/infer|:predict)$"
checks.positive_data_acceptance.enabled = false
# Made-up events would change the features of other tests.
[[operations]]
include-path-regex = "^/events/"
enabled = false
"""


@pytest.mark.journey
@pytest.mark.parametrize(
    ("examples", "requests"),
    [(5, 1_000), pytest.param(700, 10_000, marks=pytest.mark.nightly)],
)
def test_generated_requests_get_no_5xx_and_only_documented_answers(
    rig, served, tmp_path, examples, requests
):
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    document = f"{served.client.base_url}/openapi.json"
    command = [str(BIN / "schemathesis"), "--config-file", str(config), "run", document]
    command += ["--max-examples", str(examples), "--no-color"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counts, done.stdout
    assert int(counts[1]) >= requests
    assert rig.predict(served.client).status_code == 200
    assert served.process.poll() is None
