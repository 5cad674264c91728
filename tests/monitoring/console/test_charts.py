"""Charts: which runs they show, the script that draws them, and how a person reads them."""

import hashlib
import json
import shutil
import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from core.project import CLONE
from docs.browser import PHONE, browser
from monitoring.check import CheckResult
from monitoring.console.figures import figures_of
from monitoring.console.history import (
    ACTING,
    UNMEASURED,
    Point,
    Series,
    chart_data,
    panels_of,
    read_history,
)
from monitoring.decisions.store import store_checks, store_decision
from tests.conftest import wait_until
from tests.support.monitoring.year import decision_row, figure
from tests.support.monitoring.year_pages import (
    MODEL,
    PAGES,
    console,
    year,  # noqa: F401  (a fixture)
)
from tests.support.tools.programs import needs_chromium

STATIC = CLONE / "monitoring" / "console" / "static"
UPLOT = "uplot@1.6.32"
SHA256 = {
    "dist/uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "dist/uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""Of the files in the package, as npm delivers it."""
COPIES = {"LICENSE": "uPlot.LICENSE"}
WIDE = 1440
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_script_of_charts_is_the_release_that_is_named():
    for name, expected in SHA256.items():
        copy = COPIES.get(name, name.rpartition("/")[2])
        assert sha256(STATIC / copy) == expected, copy


@pytest.mark.nightly
@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_the_script_of_charts_is_that_of_the_package(tmp_path):
    command = f"npm pack --silent {UPLOT} && tar xf *.tgz"
    subprocess.run(command, cwd=tmp_path, shell=True, check=True)
    files = {name: sha256(tmp_path / "package" / name) for name in SHA256}
    assert files == SHA256


@pytest.mark.parametrize(("days", "count"), [(30, 6), (1, 6)])
def test_each_run_of_the_first_hour_is_a_point(settings, days, count):
    now = datetime.now(UTC)
    for minutes in range(0, 60, 10):
        at = now - timedelta(minutes=minutes)
        store_decision(settings, decision_row(model="churn", version="1", as_of=at))
        store_checks(settings, "churn", at, [figure("psi/a", "data_drift", 0.1, 0.25)])
    (series,) = read_history(settings, "churn", days)
    assert len(series.points) == count
    data = chart_data([series], now)
    assert data["since"] == pytest.approx(data["times"][0], abs=1)
    assert data["until"] == now.timestamp()


def test_a_check_that_the_newest_run_has_not_measured_is_in_a_group_of_its_own():
    """Such as the bad outcomes of a version that is not in production any more."""
    old = figure("backfilled/auc", "performance_drift", 0.5, 0.7, status="bad")
    new = figure("psi/total_orders_30d", "data_drift", 0.1, 0.25)
    series = [
        Series(old, {NOW - timedelta(hours=1): Point(0.5, 0.7, "bad")}),
        Series(new, {NOW: Point(0.1, 0.25, "ok")}),
    ]
    panels = panels_of(series, None)
    assert (panels[ACTING], panels[UNMEASURED]) == ([series[1]], [series[0]])


def test_a_chart_has_a_gap_where_no_run_has_measured_its_check():
    result = CheckResult(name="psi/a", kind="data_drift")
    series = [
        Series(result, {NOW: Point(0.123456789, 0.25, "ok")}),
        Series(
            CheckResult(name="volume/entities", kind="volume"),
            {NOW - timedelta(hours=1): Point(900, None, "bad")},
        ),
    ]
    data = chart_data(series, NOW)
    assert data["times"] == [NOW.timestamp() - 3600, NOW.timestamp()]
    assert data["charts"] == {
        "psi/a": {"values": [None, 0.12346], "limits": [None, 0.25], "bad": []},
        "volume/entities": {"values": [900, None], "limits": [None, None], "bad": [0]},
    }


def test_the_figures_are_the_worst_drift_that_acts_and_the_metric_of_the_gates():
    results = [
        figure("psi/calm", "data_drift", 0.1, 0.25),
        figure("psi/passive", "data_drift", 7.0, 0.25, acts=False),
        figure("psi/near", "data_drift", 0.2, 0.22),
        figure("psi/wide", "data_drift", 0.3, 0.9),
        figure("backfilled/rmse", "performance_drift", 9.0),
        figure("missing/calm", "missing", 0.9, 0.05),
    ]
    figures = figures_of(results, "rmse", {"test/rmse": 8.5})
    names = [result.feature or result.name for result in figures.drift]
    assert names == ["psi/near", "psi/calm", "psi/wide", "psi/passive"]
    assert figures.worst_drift.name == "psi/near"
    assert (figures.quality.value, figures.evaluated) == (9.0, 8.5)
    newer = figure("online/rmse", "performance_drift", 8.0)
    assert figures_of([*results, newer], "rmse", {}).quality == newer
    assert figures_of([], "rmse", {}).worst_drift is None


class Page:
    """A page in Chromium."""

    def __init__(self, chromium, base):
        self._chromium = chromium
        self._base = base

    def open(self, path, width=WIDE):
        self._chromium.open(f"{self._base}{path}", width)
        wait_until(f"all of {path}", self._is_complete)

    def _is_complete(self):
        """Whether the page is there; it loads itself again until it has its answer."""
        is_loaded = "document.readyState === 'complete'"
        with suppress(RuntimeError):  # it is loaded at the moment
            return self.value(
                f"{is_loaded} && !document.querySelector('[data-reload]')"
            )
        return False

    def value(self, expression):
        """Return the value of an expression, as JSON has it."""
        expression = f"JSON.stringify({expression})"
        answer = self._chromium.do(
            "Runtime.evaluate", expression=expression, awaitPromise=True
        )
        return json.loads(answer["result"]["value"])

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self._chromium.do("Input.dispatchKeyEvent", type=kind, key=key)

    def move_to(self, x, y):
        self._chromium.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


NOTE_REFUSALS = """window.refused = []
document.addEventListener("securitypolicyviolation", (event) => {
  refused.push(event.effectiveDirective)
})"""
CHART = "document.querySelector('.plot')"
READOUT = (
    "document.querySelector('.plot').parentElement.querySelector('.readout').innerText"
)


@needs_chromium
def test_a_chart_answers_the_mouse_and_the_keys_and_nothing_else_is_loaded(year):
    with console(year) as (client, _), browser() as chromium:
        chromium.do("Page.addScriptToEvaluateOnNewDocument", source=NOTE_REFUSALS)
        page = Page(chromium, str(client.base_url).rstrip("/"))
        page.open(MODEL)
        assert page.value(f"{CHART}.querySelector('canvas').width") > 300
        newest = page.value(READOUT)
        assert "newest" in newest

        x, y = page.value(
            f"(box => [box.x + box.width / 2, box.y + 50])({CHART}.getBoundingClientRect())"
        )
        page.move_to(x, y)
        pointed = page.value(READOUT)
        assert "newest" not in pointed
        assert "not measured" in pointed, "a gap: serving was silent then"
        page.move_to(1, 1)
        assert page.value(READOUT) == newest

        page.value(f"{CHART}.focus()||1")
        page.press("ArrowLeft")
        last = page.value(READOUT)
        page.press("ArrowLeft")
        before = page.value(READOUT)
        assert len({newest, last, before}) == 3
        page.press("ArrowRight")
        assert page.value(READOUT) == last

        # The policy of the page refuses nothing that it needs, and is in force.
        assert page.value("refused") == []
        page.value(
            "document.body.insertAdjacentHTML('beforeend', '<p style=top:0>')||1"
        )
        wait_until("a refusal", lambda: page.value("refused") == ["style-src-attr"])
        base = str(client.base_url)
        assert all(url.startswith((base, "about:")) for url in chromium.requests)


@needs_chromium
def test_pages_fit_a_phone_and_are_readable_without_a_script(year):
    with console(year) as (client, _), browser() as chromium:
        page = Page(chromium, str(client.base_url).rstrip("/"))
        for path in PAGES[:-1]:
            for width in (WIDE, PHONE):
                page.open(path, width)
                assert page.value("document.documentElement.scrollWidth") <= width, path
        chromium.do("Emulation.setScriptExecutionDisabled", value=True)
        page.open(MODEL)
        chromium.do("Emulation.setScriptExecutionDisabled", value=False)
        assert "newest" in page.value(READOUT)
        assert page.value("document.querySelector('.drift progress').value") > 0.25
        assert page.value("document.querySelectorAll('button').length") == 0
        title = page.value("document.querySelector('.tile time').title")
        assert title.endswith(" UTC")


@needs_chromium
def test_times_are_those_of_the_reader_with_utc_beside(year):
    with console(year) as (client, _), browser() as chromium:
        chromium.do("Emulation.setTimezoneOverride", timezoneId="Asia/Kathmandu")
        page = Page(chromium, str(client.base_url).rstrip("/"))
        page.open(f"{MODEL}?tab=ledger")
        shown, title, moment = page.value(
            "(time => [time.innerText, time.title, time.dateTime])"
            "(document.querySelector('td.time time'))"
        )
        at = datetime.fromisoformat(moment)
        assert title == f"{at:%Y-%m-%d %H:%M} UTC"
        local = at + timedelta(hours=5, minutes=45)
        assert shown.endswith(f"{local:%H:%M}")
        updated = page.value("document.querySelector('time.updated').innerText")
        assert updated.endswith(" s ago")
