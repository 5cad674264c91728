"""MLflow's pages in a browser that opens them for the first time."""

import shutil

import pytest

from docs.browser import NAMES, browser
from mlflow_server.tracking import Tracking

WIDTH = 1440
IN_FRONT = '[role=dialog], [data-component-id="mlflow.assistant.chat_panel.close"]'
"""A box over the page, or the chat panel."""


@pytest.mark.nightly
@pytest.mark.skipif(
    not any(map(shutil.which, NAMES)), reason="Chromium is not installed"
)
def test_an_experiment_opens_on_its_runs_without_a_dialog(settings):
    tracking = Tracking(settings)
    run_id = tracking.start_or_find_run("trainings", "k", "monday's", {})
    experiment_id = tracking.get_run(run_id).info.experiment_id
    front = f"document.querySelectorAll('{IN_FRONT}').length"
    with browser() as chromium:
        address = f"{settings.mlflow_address}/#/experiments/{experiment_id}"
        chromium.open(address, WIDTH)
        page = chromium.do(
            "Runtime.evaluate",
            expression=f"`${{location.hash}} ${{{front}}} ${{document.body.innerText}}`",
        )["result"]["value"]
    place, overlays, text = page.split(" ", 2)
    assert place.startswith(f"#/experiments/{experiment_id}/runs")
    assert overlays == "0"
    assert "monday's" in text
