"""The pages of a running console, and what its process is made of."""

import re
import shutil

import pytest

from docs.browser import NAMES, browser
from tests.conftest import wait_until


def test_the_start_page_names_the_model_and_its_problem(
    rig, served, console, monitored
):
    console.page_with("not delivered: bad: said to &lt;nobody&gt;")
    page = console.page_with(f"version {served.first} since")
    name = rig.spec.name
    assert "<title>Gyre: The loop needs attention: " in page
    assert f'<article><h3><a href="/status/{name}">{name}</a>' in page
    assert "by test: because" in page
    # The verdict in words, with the remedy of the check that is bad.
    assert f"version {served.first}: total_orders_30d drifts, all else holds" in page
    assert "A retraining starts by itself." in page
    assert "60 a minute, p99 9.5 ms" in page
    runs = page.split('<section aria-labelledby="runs">')[1]
    assert "holds no stack yet" in runs.partition("</section>")[0]
    assert "model customer_churn_model" in page  # as a worker says it
    assert "<script" not in page
    assert re.search(r">What happened since \d{4}-\d\d-\d\d \d\d:\d\d UTC</h2>", page)


def test_the_page_of_a_model_has_its_checks_rows_and_runs(
    rig, served, console, monitored
):
    name = rig.spec.name
    console.page_with("newest report</a>", name)
    page = console.page_with("Acted on, the worst first", name)
    assert f'<th scope="row">production</th><td>version {served.first}</td>' in page
    assert page.count('<td class="verdict">') == 3
    acting, passive = page.split("<h3>Acted on")[1].split("<h3>Shown, never acted on")
    first, *_ = re.findall(r"\?check=([^#]*)#history", acting)
    assert first == "psi/total_orders_30d"
    assert "grows by a day each day" in passive
    assert re.search(rf'<a href="/report/{name}/[^"]*">report</a>', page)
    versions = page.split('<section aria-labelledby="versions">')[1]
    assert (
        f'<a href="/card/{name}/{served.second}">version {served.second}</a>'
        in versions
    )
    assert "<strong>production</strong>" in versions
    assert "0.71 <small>(0.5)</small>" in versions
    assert "<td>not the same</td><td>the same</td>" in versions
    assert "1 of 2 versions were the same (50 %)" in versions
    assert '<td class="who">test</td>' in page
    for link in ("report</a>", '">its monitoring in MLflow</a>',
                 '">last training in MLflow</a>', f'/#/models/{name}">MLflow</a>'):  # fmt: skip
        assert link in page
    one = console.client.get(
        f"/status/{name}", params={"check": "missing/lifetime_value"}
    )
    assert one.text.count("<figure>") == 1


def test_an_unknown_address_shows_a_page_with_a_link_back(rig, console):
    for path, text in (
        ("/nothing", "No such page"),
        ("/status/nothing", rig.spec.name),
        ("/data/nothing", "orders"),
        (f"/card/{rig.spec.name}/99", "no card"),
    ):
        # At first nothing is known of the cards.
        wait_until(text, lambda: text in console.client.get(path).text)  # noqa: B023
        answer = console.client.get(path)
        assert (answer.status_code, text in answer.text) == (404, True), path
        assert '<a href="/">Back to all models</a>' in answer.text


def documents(rig, served, console):
    """Each page that shows a document, by the text of the document."""
    name = rig.spec.name
    page = console.page_with("newest report</a>", name)
    (report,) = re.findall(rf'"(/report/{name}/[^"]*)">newest report', page)
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
        policy = document.headers["content-security-policy"]
        assert policy.startswith("sandbox allow-scripts; default-src 'none'")
        assert "http" not in policy
        if "validation" not in path:
            assert ">previous</a>" in page or ">next</a>" in page
            assert ">open in MLflow</a>" in page


@pytest.mark.skipif(
    not any(map(shutil.which, NAMES)), reason="Chromium is not installed"
)
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
            assert page.startswith("Gyre: ")
            assert page.endswith(path)
        document = f"/card/{rig.spec.name}/{served.second}/document"
        # The script runs, in an origin of its own.
        assert shown(document, "document.title + ' ' + origin") == "acted null"
        for url in chromium.requests:
            assert url.startswith((base, "about:", "data:"))
            assert not url.endswith("/metrics")


def test_a_challenger_is_shown_next_to_production(rig, served, console, monitored):
    name = rig.spec.name
    row = (
        f'<th scope="row">challenger</th><td>version {served.second}</td><td>10 %</td>'
    )
    rig.promote(served.second, role="challenger", percent=10)
    wait_until("a worker that holds it", lambda: row in console.page(name))
    page = console.page(name)
    rig.release("challenger")
    assert f"<code>gyre compare {name}</code> compares the versions" in page
    wait_until("its end", lambda: "No rollout is in progress" in console.page(name))
    assert '<th scope="row">release</th>' in console.page(name)


def test_no_file_outside_the_data_docs_is_shown(rig, console):
    folder = rig.settings.data_docs
    (folder.parent / "secret.json").write_text("{}")
    assert 'href="/validation/orders"' in console.client.get("/data/orders").text
    for path in (
        "../secret.json",
        "%2e%2e/secret.json",
        "..%2fsecret.json",
        "nothing/",
    ):
        assert console.client.get(f"/data-docs/{path}").status_code == 404
