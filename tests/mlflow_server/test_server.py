"""The server is for browsers of this machine only, and its pages show runs first."""

import http.client
import re
from contextlib import closing

import httpx
import psutil
import pytest
from mlflow.tracing.constant import TRACE_RENDERER_ASSET_PATH

from docs.browser import browser
from mlflow_server.api.tracking import Tracking
from mlflow_server.promotion.ledger import Ledger
from tests.conftest import BIN, answers, new_settings, running, wait_until
from tests.mlflow_server.conftest import client, new_model
from tests.support.tools.programs import needs_chromium

IN_FRONT = '[role=dialog], [data-component-id="mlflow.assistant.chat_panel.close"]'
"""A box over the page, or the chat panel."""


def test_the_server_listens_on_loopback_only(settings):
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.laddr.port == settings.mlflow_port
        and connection.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}


def test_foreign_hosts_and_origins_are_refused(settings):
    ask = f"{settings.mlflow_address}/api/2.0/mlflow/experiments/get?experiment_id=0"
    make = f"{settings.mlflow_address}/api/2.0/mlflow/experiments/create"
    here = f"localhost:{settings.mlflow_port}"
    for name, status in ((here, 200), ("evil.example", 403), ("10.evil.example", 403)):
        assert httpx.get(ask, headers={"host": name}).status_code == status
    for name, status in (
        (here, 200),
        ("evil.example", 403),
        (f"localhost:{settings.mlflow_port + 1}", 403),
    ):
        headers = {"host": here, "origin": f"http://{name}"}
        answer = httpx.post(make, json={"name": name}, headers=headers)
        assert answer.status_code == status
    page = httpx.get(settings.mlflow_address)
    assert page.status_code == 200
    assert page.headers["x-frame-options"] == "SAMEORIGIN"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in page.headers


@pytest.mark.parametrize(
    "path",
    [
        "static-files%2flib%2fnotebook-trace-renderer%2f..%2f..%2findex.html",
        "static-files/lib/notebook-trace-renderer/%2e%2e/%2e%2e/index.html",
        "static-files/lib/notebook-trace-renderer/%2e%2e/../index.html",
        "static-files/lib/notebook-trace-renderer/js/..%2f../../index.html",
        "static-files/lib/notebook-trace-renderer%2f%2f..%2f..%2findex.html",
        "static-files/lib/notebook-trace-renderer/index.html/..%2f..%2f..%2findex.html",
        "static-files/index.html",
        "",
    ],
)
def test_no_other_site_shows_mlflows_ui_in_a_frame(settings, path):
    connection = http.client.HTTPConnection("127.0.0.1", settings.mlflow_port)
    with closing(connection):
        connection.request("GET", f"/{path}")
        answer = connection.getresponse()
    assert answer.getheader("x-frame-options") == "SAMEORIGIN"


def test_a_notebook_shows_traces_in_a_frame(settings):
    page = httpx.get(f"{settings.mlflow_address}{TRACE_RENDERER_ASSET_PATH}/index.html")
    assert page.status_code == 200
    assert "x-frame-options" not in page.headers
    scripts = re.findall(r'src="([^"]+)"', page.text)
    assert scripts
    for script in scripts:
        answer = httpx.get(f"{settings.mlflow_address}{script}")
        assert answer.status_code == 200
        assert "javascript" in answer.headers["content-type"]


@pytest.mark.nightly
def test_mlflows_own_command_enters_a_role_changed_in_the_ui_in_the_ledger(tmp_path):
    settings = new_settings(tmp_path)
    command = f"{BIN}/mlflow server --app-name=gyre --workers=1 --host=127.0.0.1"
    command += f" --port={settings.mlflow_port} --artifacts-destination={tmp_path}"
    env = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "GYRE_HOME": str(tmp_path),
        "GYRE_MLFLOW_PORT": str(settings.mlflow_port),
    }
    with running(command.split(), tmp_path / "log", **env) as process:
        wait_until("MLflow", lambda: answers(f"{settings.mlflow_address}/health"))
        model = new_model(settings, 1)
        client(settings).set_registered_model_alias(model, "production", "1")
        process.terminate()  # it passes that on to its server
        process.wait(600)
    with closing(Ledger(settings)) as ledger:
        (row,) = ledger.rows(model)
    assert (row.to_version, row.who) == ("1", "mlflow-ui")


@pytest.mark.nightly
@needs_chromium
def test_an_experiment_opens_on_its_runs_without_a_dialog(settings):
    tracking = Tracking(settings)
    run_id = tracking.start_or_find_run("trainings", "k", "monday's", {})
    experiment_id = client(settings).get_run(run_id).info.experiment_id
    front = f"document.querySelectorAll('{IN_FRONT}').length"
    with browser() as chromium:
        chromium.open(f"{settings.mlflow_address}/#/experiments/{experiment_id}", 1440)
        page = chromium.do(
            "Runtime.evaluate",
            expression=f"`${{location.hash}} ${{{front}}} ${{document.body.innerText}}`",
        )["result"]["value"]
    place, overlays, text = page.split(" ", 2)
    assert place.startswith(f"#/experiments/{experiment_id}/runs")
    assert overlays == "0"
    assert "monday's" in text
