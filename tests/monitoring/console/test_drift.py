"""The page of a feature's drift: its distributions, its rule, and why it acts or not."""

import re
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from core.spec.monitoring import Monitoring
from docs.browser import PHONE, browser
from mlflow_server.api.pages import DISTRIBUTIONS
from mlflow_server.api.tracking import Tracking
from monitoring.check import CheckResult
from monitoring.console.pages import TEMPLATES
from monitoring.decisions.store import store_checks
from tests.conftest import wait_until
from tests.monitoring.console.conftest import RESULTS
from tests.support.monitoring.page_text import one_line
from tests.support.tools.programs import needs_chromium
from training.evaluation.psi import UsualSpread
from training.evaluation.reference import Reference

pytestmark = pytest.mark.journey

DRAW = np.random.default_rng(0)
REFERENCE = pd.DataFrame(
    {
        "total_orders_30d": DRAW.poisson(2, 1000).astype(float),
        "customer_tenure_days": DRAW.gamma(2, 100, 1000),
        "channel": DRAW.choice(["web", "shop", "<b>phone</b>"], 1000).astype(object),
        "score": DRAW.random(1000),
    }
)


def moved_window():
    """More orders, some without a value; a channel that is new."""
    rows = REFERENCE.copy()
    rows["total_orders_30d"] += 1
    rows.loc[:49, "total_orders_30d"] = np.nan
    rows.loc[:199, "channel"] = "app"
    return rows


def store_distributions(rig, folder):
    """Store what a real report compares beside the newest report; return its psi figures."""
    from monitoring.checks.report import report_results  # noqa: PLC0415  (Evidently: seconds)

    reference = Reference(
        rows=REFERENCE.assign(label=1.0), features={}, snapshot=None, threshold=0.5,
        evaluated={}, spread=UsualSpread(),
    )  # fmt: skip
    results = report_results(Monitoring(), reference, moved_window(), [], folder)
    tracking = Tracking(rig.settings)
    (run,) = tracking.runs(f"{rig.spec.experiment}_monitoring")
    newest = max(file.path for file in tracking.list_artifacts(run.run_id, "reports"))
    tracking.log_artifact(run.run_id, str(folder / DISTRIBUTIONS), newest)
    return {result.name: result.value for result in results}


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_a_feature_has_the_distributions_of_its_psi_and_why_it_acts(
    rig, served, console, monitored, tmp_path
):
    path = f"/status/{rig.spec.name}?check=psi"

    def panel(feature):
        page = one_line(console.client.get(f"{path}/{feature}").text)
        return page.split('aria-labelledby="drift">')[1].partition("</section>")[0]

    none = "There are no distributions beside the report of"
    wait_until(none, lambda: none in panel("total_orders_30d"))
    assert "an older release wrote it" in panel("total_orders_30d")

    figures = store_distributions(rig, tmp_path)
    wait_until("a table", lambda: "<table" in panel("total_orders_30d"))
    orders = panel("total_orders_30d")
    assert re.search(r'href="/report/[^"]*">Evidently', orders)
    shares = re.findall(r'<td class="number">([\d.]+) %</td>', orders)
    usual = (REFERENCE["total_orders_30d"] <= 0).mean()
    assert shares[:2] == [f"{100 * usual:.1f}", "0.0"]
    assert shares[-2:] == ["0.0", "5.0"], "rows without a value"
    for column in (shares[:-2:2], shares[1:-2:2]):
        assert sum(map(float, column)) == pytest.approx(100, abs=0.6)
    assert f"<b>{figures['psi/total_orders_30d']:.3f}</b>" in orders
    words = text_of(orders)
    assert "0.31 up to" in words
    assert "0.25 , psi_significant of the spec" in words
    assert "Yes: the window is bad. 2 bad windows of the last 5 start" in words
    assert "up to 0 " in words
    assert "1 to 2 " in words

    tenure = panel("customer_tenure_days")
    assert "No: grows by a day each day (" in text_of(tenure)
    channel = panel("channel")
    assert "(b>phone" not in channel
    assert "not in the reference" in channel
    assert "20.0 %" in channel
    assert "the newest monitoring run did not measure this PSI" in channel
    assert "nothing was not compared in the window" in text_of(panel("nothing"))


def test_a_drift_that_could_not_be_measured_has_its_reason(
    rig, served, console, monitored
):
    words = "channel: Evidently cannot measure it: ValueError"
    unknown = CheckResult(
        name="psi/channel", kind="data_drift", status="unknown", words=words
    )
    newest = monitored - timedelta(hours=4)
    path = f"/status/{rig.spec.name}?check=psi/channel"
    store_checks(rig.settings, rig.spec.name, newest, [*RESULTS, unknown])
    try:
        wait_until("its words", lambda: words in console.client.get(path).text)
        assert "The PSI could not be measured" in console.client.get(path).text
    finally:
        store_checks(rig.settings, rig.spec.name, newest, RESULTS)


@needs_chromium
def test_distributions_and_report_fit_a_phone_and_bars_need_no_script(
    rig, served, console, monitored, tmp_path
):
    path = f"/status/{rig.spec.name}?check=psi/total_orders_30d"
    store_distributions(rig, tmp_path)
    wait_until("bars", lambda: 'class="pair"' in console.client.get(path).text)
    bars = "document.querySelectorAll('.distribution rect.window')"
    with browser() as chromium:

        def value(expression):
            answer = chromium.do("Runtime.evaluate", expression=expression)
            return answer["result"]["value"]

        chromium.do("Emulation.setScriptExecutionDisabled", value=True)
        for width in (1440, PHONE):
            chromium.open(f"{console.client.base_url}{path}", width)
            assert value("document.documentElement.scrollWidth") <= width
            widths = f"[...{bars}].map(bar => bar.getBoundingClientRect().width)"
            assert value(f"Math.max(...{widths})") > 30
            table = "document.querySelector('.distribution')"
            assert value(f"{table}.scrollWidth <= {table}.parentNode.clientWidth")
        chromium.do("Emulation.setScriptExecutionDisabled", value=False)

        report = tmp_path / "report.html"
        style = TEMPLATES.get_template("report_style.html").render()
        report.write_text(report.read_text().replace("</head>", style, 1))
        chromium.open(report.as_uri(), PHONE)
        cards = "[...document.querySelectorAll('.MuiCard-root')]"
        wait_until("cards", lambda: value(f"{cards}.length > 10"))
        right = f"{cards}.map(card => card.getBoundingClientRect().right)"
        wait_until("charts", lambda: value("!!document.querySelector('.plotly')"))
        assert value(f"Math.max(...{right})") <= PHONE
        font = (
            "getComputedStyle(document.querySelector('.MuiTypography-root')).fontFamily"
        )
        assert value(font).startswith("Inter")


def test_a_long_verdict_shows_its_three_worst_causes_and_the_rest_at_a_click():
    macros = TEMPLATES.get_template("macros.html").module
    causes = [
        f"feature_{place}: PSI 0.{9 - place}, drift from 0.25" for place in range(5)
    ]
    long = str(macros.long(f"bad: {'; '.join(causes)}"))
    shown, more = long.split("<details>")
    assert shown.strip() == f"bad: {'; '.join(causes[:3])}"
    assert "<summary>2 more causes</summary>" in more
    assert "; ".join(causes[3:]) in more
    short = f"bad: {'; '.join(causes[:3])}"
    assert str(macros.long(short)).strip() == short
