"""Two versions side by side on a page, from their runs in MLflow."""

import signal
from dataclasses import replace
from datetime import timedelta
from math import nan

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from docs.browser import PHONE, browser
from mlflow_server.api.comparison import EVALUATION, GATES, compare_versions
from mlflow_server.api.registry import Registry
from mlflow_server.api.rest import call_mlflow
from mlflow_server.api.tracking import Tracking
from monitoring.console.pages import Console
from tests.conftest import wait_until
from tests.support.monitoring.page_text import one_line
from tests.support.serving.console import console as start_console
from tests.support.tools.programs import needs_chromium

PARAMETERS = {"estimator": "forest", "depth": 3}


def measure(rig, version, auc, **parameters):
    """Give the run of a version what a training leaves there."""
    tracking = Tracking(rig.settings)
    run_id = Registry(rig.settings).version(rig.spec.name, version).run_id
    evaluation = {
        "challenger": {"auc": auc, "log_loss": 0.5},
        "figures": {"calibration": 0.02},
        "contributions": {"lifetime_value": auc / 10},
    }
    gate = {"metric": "auc", "rule": "least", "passed": True, "text": f"auc {auc}"}
    tracking.log_dict(run_id, evaluation, EVALUATION)
    tracking.log_dict(run_id, {"gates": [gate]}, GATES)
    tracking.log(run_id, params=PARAMETERS | parameters)
    return run_id


@pytest.fixture(scope="module")
def measured(rig, served):
    """A version whose run is deleted, after two that have one."""
    measure(rig, served.first, 0.71)
    measure(rig, served.second, 0.75, leaves=9)
    deleted = rig.register(0.1).version
    run_id = measure(rig, deleted, 0.6)
    call_mlflow(rig.settings, "runs/delete", {"run_id": run_id})
    return deleted


@pytest.fixture(scope="module")
def client(rig, measured):
    with start_console(rig) as (client, _):
        yield client


def page_of(rig, client, text, **query):
    """The tab once the text is on it: what MLflow is slow to answer is unknown at first."""
    address = f"/status/{rig.spec.name}"
    params = {"tab": "versions"} | query

    def page():
        answer = client.get(address, params=params)
        assert answer.status_code == 200
        return one_line(answer.text)

    wait_until(text, lambda: text in page())
    return page()


def test_what_differs_is_shown_first_and_the_rest_is_folded(rig, served, client):
    first, second = served.first, served.second
    page = page_of(rig, client, "Metrics that differ", a=first, b=second)
    assert f"Version {first} and version {second}</h2>" in page
    part = page.split('id="compared"')[1].partition("</section>")[0]
    different, same = part.split('<details class="more">')
    cells = '<td class="fact">0.71</td><td class="fact">0.75</td>'
    row = f'<th scope="row">auc</th>{cells}<td class="number">+0.04</td>'
    assert row in different
    assert ">auc least<" in different
    assert ">lifetime value<" in different
    assert ">leaves<" in different
    assert "metric log loss" in same
    assert "metric calibration" in same
    assert "parameter depth" in same
    facts = compare_versions(rig.settings, rig.spec.name, first, second)
    assert part.count('<th scope="row">') == len(facts)
    assert f"gyre compare {rig.spec.name} {first} {second}" in part
    # What the tab had before is still there.
    assert ">Versions side by side</h2>" in page
    assert ">In serving</h2>" in page


def test_a_metric_that_is_undefined_for_both_versions_does_not_differ(
    rig, served, measured
):
    versions = (served.first, served.second)
    try:
        for version in versions:
            measure(rig, version, nan)
        facts = compare_versions(rig.settings, rig.spec.name, *versions)
        (auc,) = [row for row in facts if row["fact"] == "metric auc"]
        assert not auc["differs"]
        assert auc[served.first] == "none"
    finally:
        measure(rig, served.first, 0.71)
        measure(rig, served.second, 0.75)


def test_by_default_production_is_compared_with_another_version(rig, served, client):
    page = page_of(rig, client, 'id="compared"')
    heading = page.split('<h2 id="compared">')[1].partition("</h2>")[0]
    assert heading.endswith(f"and version {served.first}")


def test_a_version_whose_run_is_deleted_has_its_figures(rig, served, client, measured):
    page = page_of(rig, client, "Metrics that differ", a=served.first, b=measured)
    assert '<td class="fact">0.6</td>' in page


def test_an_unknown_version_is_named(rig, served, client):
    page_of(rig, client, f"{rig.spec.name} has no version 99", a=served.first, b="99")
    odd = "</select>'\x00"
    page = page_of(rig, client, "MLflow refuses", a=served.first, b=odd)
    assert "</select>'" not in page.replace("</select> ", "")


def let_a_minute_pass(readers):
    """Make what they have read older by as much."""
    for reader in readers:
        reading = reader.reading
        at = reading.at - timedelta(minutes=1)
        reader._reading = replace(reading, at=at)


@pytest.mark.journey
def test_figures_stay_while_mlflow_does_not_answer(rig, served, measured):
    versions = (served.first, served.second)
    query = dict(zip("ab", versions, strict=True))
    console = Console(rig.settings)
    readers = console._loop.models[rig.spec.name]
    app = Starlette(routes=[Route("/status/{name}", console.model)])
    with TestClient(app) as client:
        page_of(rig, client, "Metrics that differ", **query)
        rig.mlflow.send_signal(signal.SIGSTOP)
        try:
            let_a_minute_pass([readers.pages, readers.comparison(*versions)])
            page = page_of(rig, client, "as MLflow does not answer", **query)
        finally:
            rig.mlflow.send_signal(signal.SIGCONT)
    assert "Metrics that differ" in page
    assert f"version {served.second}</a>" in page


@needs_chromium
def test_the_pages_fit_a_phone_and_their_forms_work_by_keyboard(rig, served, client):
    base = f"{client.base_url}/status/{rig.spec.name}"
    query = f"tab=versions&a={served.first}&b={served.second}"
    page_of(rig, client, "Metrics that differ", a=served.first, b=served.second)
    rig.predict_online(served.client)
    # A page whose answer is still to come loads itself again.
    page_of(rig, client, 'id="newest"', tab="predictions")

    def value(expression):
        answer = chromium.do("Runtime.evaluate", expression=expression)
        return answer.get("result", {}).get("value", "")

    with browser() as chromium:
        for address in (f"{base}?{query}", f"{base}?tab=predictions"):
            chromium.open(address, PHONE)
            assert value("document.documentElement.scrollWidth") <= PHONE
        value("document.getElementById('request_id').focus()")
        chromium.do("Input.insertText", text="no such id")
        for kind in ("keyDown", "keyUp"):
            key = {"key": "Enter", "text": "\r", "windowsVirtualKeyCode": 13}
            chromium.do("Input.dispatchKeyEvent", type=kind, **key)
        wait_until(
            "an answer",
            lambda: (
                "No prediction has the request id" in value("document.body.innerText")
            ),
        )
        assert "request_id=no+such+id" in value("location.search")
