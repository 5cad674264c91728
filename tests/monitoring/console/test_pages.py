"""The pages of a running console, and what its process is made of."""

import re

import pytest

from docs.browser import browser
from monitoring.console.pages import TABS
from tests.conftest import wait_until
from tests.support.tools.programs import needs_chromium


def test_the_start_page_names_the_model_and_its_problem(
    rig, served, console, monitored
):
    console.page_with("not delivered: bad: said to &lt;nobody&gt;")
    page = console.page_with(f"<b>{served.first}</b> since")
    name = rig.spec.name
    assert "<title>The loop needs attention: " in page
    assert f'<h3><a href="/status/{name}">{name}</a></h3>' in page
    assert '<span class="pill attention">drifted</span>' in page
    assert rig.spec.description in page
    assert "by test: because" in page
    # The verdict in words, with the remedy of the check that is bad.
    assert f"version {served.first}: total_orders_30d drifts, all else holds" in page
    assert "A retraining starts by itself." in page
    runs = page.split('<section class="panel" aria-labelledby="runs">')[1]
    assert "holds no stack yet" in runs.partition("</section>")[0]
    assert "model customer_churn_model" in page  # as a worker says it


def test_the_first_tab_of_a_model_says_how_it_is_now(rig, served, console, monitored):
    name = rig.spec.name
    console.page_with("Training started", name)
    page = console.page_with(">Evidently report</a>", name)
    assert f"<title>{name} · Gyre</title>" in page
    assert rig.spec.description in page
    assert f'href="/card/{name}/{served.first}">Model card</a>' in page
    problem = page.split('<ol class="problems">')[1].partition("</ol>")[0]
    assert "total_orders_30d drifts" in problem
    count = re.search(r'class="count">(\d+)<', page)
    assert count, "the navigation has the number of problems"
    assert int(count[1]) > 0
    tiles = page.split('<section class="tiles"')[1].partition("</section>")[0]
    for figure in (
        f'<span class="value">{served.first} <small>since',
        '<span class="value bad">0.31 <small>PSI, limit 0.25',
        '<span class="value">0.61 <small>0.598 at evaluation',
    ):
        assert figure in tiles, figure
    drift = page.split('<table class="drift">')[1].partition("</table>")[0]
    features = re.findall(r"\?check=psi/(\w+)", drift)
    assert features == ["total_orders_30d", "customer_tenure_days"]
    assert "grows by a day each day" in drift
    assert '<progress value="0.31" max="0.5"' in drift
    events = page.split('id="timeline"')[1].partition("</section>")[0]
    for title in ("A retraining was decided", f"Version {served.first} promoted",
                  "Training started", "Alert: cause"):  # fmt: skip
        assert f"<strong>{title}</strong>" in events, title
    for link in (f"/report/{name}/", f"/status/{name}?tab=ledger#row-",
                 f"/dags/train_{name}/runs", "/#/experiments/"):  # fmt: skip
        assert link in events, link


def test_the_tabs_of_a_model_have_its_checks_versions_and_rows(
    rig, served, console, monitored
):
    name = rig.spec.name
    checks = console.page_with("Checks that act, the worst first", name, tab="checks")
    acting, passive = checks.split(">Checks that act,")[1].split(
        ">Checks that never act"
    )
    first, *_ = re.findall(r'\?check=([^"]*)"', acting)
    assert first == "psi/total_orders_30d"
    assert "grows by a day each day" in passive
    count = re.search(r'>Checks <span class="muted">(\d+)</span>', checks)[1]
    assert checks.count('<td class="remark">') == int(count)
    versions = console.page_with("were the same (", name, tab="versions")
    assert f'<th scope="row">production</th><td>version {served.first}</td>' in versions
    card = f'<a href="/card/{name}/{served.second}">version {served.second}</a>'
    assert card in versions
    assert "<strong>production</strong>" in versions
    assert "0.71 <small>(0.5)</small>" in versions
    assert "<td>not the same</td><td>the same</td>" in versions
    assert "1 of 2 were the same (50 %)" in versions
    for link in ('">the monitoring runs ↗</a>', '">the last training ↗</a>',
                 f'/#/models/{name}">the model ↗</a>'):  # fmt: skip
        assert link in versions
    ledger = console.page(name, tab="ledger")
    assert ledger.count('<td class="verdict">') == 3
    assert '<td class="who" data-label="by">test</td>' in ledger
    assert re.search(rf'<a href="/report/{name}/[^"]*">report</a>', ledger)
    one = console.client.get(
        f"/status/{name}", params={"check": "missing/lifetime_value"}
    )
    assert one.text.count("<figure") == 1


def test_no_page_has_a_script_or_a_style_of_its_own(rig, served, console, monitored):
    name = rig.spec.name
    paths = ["/", "/data/orders", "/validation/orders", "/nothing"]
    paths += [f"/status/{name}?tab={tab}" for tab in TABS]
    for path in paths:
        answer = console.client.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 's")
        assert "unsafe" not in policy
        assert not re.search(r"<style|<[^>]* (style|on\w+)=", answer.text), path
        for tag in re.findall(r"<script[^>]*>", answer.text):
            assert 'src="/static/' in tag or 'type="application/json"' in tag, path
        for file in re.findall(r'"(/static/[^"]*)"', answer.text):
            assert console.client.get(file).status_code == 200, file


def test_the_indentation_of_templates_is_no_part_of_a_page(console):
    for path in ("/", "/data/orders"):
        assert "\n " not in console.client.get(path).text


def test_an_unknown_address_shows_a_page_with_a_link_back(rig, console):
    for path, text in (
        ("/nothing", "No such page"),
        ("/status/nothing", rig.spec.name),
        ("/data/nothing", "orders"),
        (f"/card/{rig.spec.name}/99", "There is no card"),
    ):
        # At first nothing is known of the cards.
        wait_until(text, lambda: text in console.client.get(path).text)  # noqa: B023
        answer = console.client.get(path)
        assert (answer.status_code, text in answer.text) == (404, True), path
        assert '<a href="/">Back to all models</a>' in answer.text


CONSOLE_TYPE = "font-variant-numeric: tabular-nums;"
"""In the console's style for Evidently's reports."""


def documents(rig, served, console):
    """Each page that shows a document, by the text of the document."""
    name = rig.spec.name
    page = console.page_with(">Evidently report</a>", name)
    (report,) = re.findall(rf'"(/report/{name}/[^"]*)">Evidently report', page)
    return {
        f"of version {served.second}": f"/card/{name}/{served.second}",
        "Evidently": report,
        "Successful Expectations": "/validation/orders",
    }


def test_documents_are_shown_in_a_frame_and_cannot_act_on_the_console(
    rig, served, console, monitored
):
    for text, path in documents(rig, served, console).items():
        page = console.client.get(path).text
        (frame,) = re.findall(r'<iframe sandbox="allow-scripts" src="([^"]*)"', page)
        document = console.client.get(frame)
        assert text in document.text
        assert (CONSOLE_TYPE in document.text) == (text == "Evidently")
        policy = document.headers["content-security-policy"]
        assert policy.startswith("sandbox allow-scripts; default-src 'none'")
        assert "http" not in policy
        if "validation" not in path:
            assert ">previous</a>" in page or ">next</a>" in page
            assert ">open in MLflow ↗</a>" in page


@needs_chromium
def test_a_script_in_a_document_does_not_reach_the_console(
    rig, served, console, monitored
):
    base = str(console.client.base_url)

    def shown(path, expression):
        chromium.open(f"{base}{path}", 1280)
        answer = chromium.do("Runtime.evaluate", expression=expression)
        return answer["result"]["value"]

    with browser() as chromium:
        for path in documents(rig, served, console).values():
            page = shown(path, "document.title + ' ' + location.pathname")
            assert page.endswith(f" · Gyre {path}")
        document = f"/card/{rig.spec.name}/{served.second}/document"
        # The script runs, in an origin of its own.
        assert shown(document, "document.title + ' ' + origin") == "acted null"
        for url in chromium.requests:
            assert url.startswith((base, "about:", "data:"))
            assert not url.endswith("/metrics")


@pytest.mark.journey
def test_a_challenger_is_shown_next_to_production(rig, served, console, monitored):
    name = rig.spec.name
    row = (
        f'<th scope="row">challenger</th><td>version {served.second}</td><td>10 %</td>'
    )
    rig.promote(served.second, role="challenger", percent=10)
    page = console.page_with(row, name, tab="versions")
    rig.release("challenger")
    command = f'<code class="command">gyre compare {name}</code> compares the versions'
    assert command in page
    console.page_with("No rollout or experiment is in progress", name, tab="versions")
    assert '<th scope="row">release</th>' in console.page(name, tab="ledger")


@pytest.mark.parametrize("length", [1001, 4000, 6000, 30000])
def test_a_path_that_no_disk_takes_is_no_page(console, length):
    path = "a/" * (length // 2)
    assert console.client.get(f"/data-docs/{path}x.html").status_code == 404


def test_no_file_outside_the_data_docs_is_shown(rig, console):
    folder = rig.settings.data_docs
    (folder.parent / "secret.json").write_text("{}")
    assert 'href="/validation/orders"' in console.client.get("/data/orders").text
    for path in (
        "../secret.json",
        "%2e%2e/secret.json",
        "..%2fsecret.json",
        "nothing/",
        "a%00.html",
        "a%0a.html",
        f"{'a' * 300}.html",
        f"{'é' * 130}.html",
    ):
        assert console.client.get(f"/data-docs/{path}").status_code == 404


def test_a_page_of_the_data_docs_that_cannot_be_read_is_not_called_missing(
    rig, console
):
    folder = rig.settings.data_docs
    loop = folder / "loop.html"
    loop.parent.mkdir(parents=True, exist_ok=True)
    loop.symlink_to("loop.html")
    answer = console.client.get("/data-docs/loop.html")
    loop.unlink()  # others share the folder
    assert answer.status_code == 502
    assert "Too many levels of symbolic links" in answer.text
    answer = console.client.get("/data-docs/nothing.html")
    assert answer.status_code == 404
    assert "has not written this page" in answer.text
    inner_folder = folder / "a folder"
    inner_folder.mkdir()
    assert console.client.get("/data-docs/a folder").status_code == 404
    inner_folder.rmdir()
