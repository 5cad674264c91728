"""Clients that others wrote, each with its defaults: of a JDK, curl, and KServe's SDK.

Triton's and MLflow's are in test_protocols.py.
"""

import json
import subprocess
from pathlib import Path

import pytest

from core.project import PROJECT
from tests.support.tools.programs import needs

pytestmark = pytest.mark.journey

CLIENTS = Path(__file__).parent / "clients"
NAME = "customer_churn_model"
KSERVE = ".venv-kserve"
"""An environment of its own, with the older psutil that the SDK wants."""


def output(*command, **options):
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs("javac")
def test_the_client_of_a_jdk_is_answered(rig, served):
    rig.predict_online(served.client)
    address = str(served.client.base_url)
    lines = output("java", str(CLIENTS / "Predict.java"), address).splitlines()
    answers = [line.split(" ", 2) for line in lines]
    assert [answer[:2] for answer in answers] == [["200", "HTTP_1_1"]] * 4
    keys = [json.loads(body)["customer_id"] for _, _, body in answers]
    assert keys == [4, 4, 8, 8]


@needs("curl")
@pytest.mark.parametrize("protocol", ["--http1.1", "--http2"])
def test_curl_is_answered_in_http_1_whatever_it_offers(rig, served, protocol):
    rig.predict_online(served.client)
    url = f"{served.client.base_url}/predict"
    body = json.dumps({"customer_id": 8})
    form = ["--header", "Content-Type: application/json", "--data", body]
    end = ["--silent", "--show-error", "--write-out", "\n%{http_code} %{http_version}"]
    # Twice by one connection.
    text = output("curl", protocol, *form, *end, url, url)
    first, status, second, again = text.replace("1.1{", "1.1\n{").splitlines()
    assert status == again == "200 1.1"
    keys = [json.loads(answer)["customer_id"] for answer in (first, second)]
    assert keys == [8, 8]


@pytest.mark.nightly
def test_kserves_sdk_is_answered_by_key_and_by_features(rig, served):
    body = [{"customer_id": 4}, {"customer_id": 4, "features": rig.features}]
    plain = rig.online(lambda: served.client.post("/predict/batch", json=body))
    by_key, by_features = [row["probability"] for row in plain.json()]
    subprocess.run(
        ["make", "--silent", f"{KSERVE}/gyre.stamp"], cwd=PROJECT, check=True
    )
    python = PROJECT / KSERVE / "bin" / "python"
    script = [str(python), str(CLIENTS / "kserve_client.py")]
    asked = [str(served.client.base_url), NAME, served.first]
    text = output(*script, *asked, input=json.dumps(rig.features))
    found = json.loads(text.splitlines()[-1])
    assert found["ready"] == [True, True, True, False, True]
    scores = [row["score"] for row in found["v1"]["predictions"]]
    assert scores == [by_key, by_features]
    assert found["explained"][0] == 405  # Gyre's is /explain
    for answer, score in zip(
        found["v2"], (by_key, by_features, by_features), strict=True
    ):
        tensors = {each["name"]: each["data"] for each in answer["outputs"]}
        assert tensors["score"] == [score]
    status, text = found["binary"]
    assert (status, "binary_data=False" in text) == (415, True)
    status, text = found["stranger"]
    assert (status, "customer_id -1 is not known" in text) == (404, True)
    status, text = found["nobody"]
    assert (status, "no model 'nobody'" in text) == (404, True)
