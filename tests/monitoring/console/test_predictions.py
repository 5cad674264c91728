"""One prediction on a page: by the id of its request, or by its entity."""

import json
import re
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import psutil
import pytest
from pydantic_core import to_json

from mlflow_server.api.registry import Registry
from monitoring.console.panels.predictions import FRESH_SECONDS, LIMIT_SECONDS
from monitoring.log.collect import collect
from tests.conftest import at_most, wait_until
from tests.serving.conftest import FEATURES, KNOWN
from tests.support.monitoring.log_lines import FAILURE, answer, write
from tests.support.monitoring.page_text import one_line
from tests.support.serving.console import console as start_console
from tests.support.tools.preloaded import commands_folder
from tests.support.training.chains import own_project

PANEL = "monitoring.console.panels.predictions"
BEING_READ = "The prediction log is being read"
ODD_TEXTS = (
    "'; DROP TABLE logged; --",
    '" OR 1=1',
    "../../etc/passwd",
    "<script>x</script>",
    "%s{0}\\",
    "\x00",
    "ключ 🔑",
    "a" * 5000,
)


class Pages:
    """The tab of a model, once its answer is there."""

    def __init__(self, client, name):
        self.client = client
        self.name = name

    def now(self, **question):
        params = {"tab": "predictions"} | question
        answer = self.client.get(f"/status/{self.name}", params=params)
        assert answer.status_code == 200, answer.text
        return one_line(answer.text)

    def answered(self, **question):
        wait_until("an answer", lambda: BEING_READ not in self.now(**question))
        return self.now(**question)


@contextmanager
def console_of(rig):
    """A console whose searches are processes of the preloaded python: Feast takes seconds to import."""
    constants = {"sys.executable": str(commands_folder() / "python")}
    with start_console(rig, constants=constants) as (client, _):
        yield client


@pytest.fixture(scope="module")
def pages(rig, served):
    with console_of(rig) as client:
        yield Pages(client, rig.spec.name)


@contextmanager
def own_pages(rig, constants=None):
    """Pages of a console whose processes can be looked at."""
    with start_console(rig, sys.executable, constants) as (client, process):
        pages = Pages(client, rig.spec.name)
        pages.process = process
        yield pages


def child_of(process):
    """The process that reads the log for a console; None if there is none."""
    children = psutil.Process(process.pid).children()
    return children[0] if children else None


def search_that_hangs(pages, **question):
    """Ask, and stop the process that searches before it has an answer."""
    with ThreadPoolExecutor() as threads:
        page = threads.submit(pages.now, **question)
        # Often: a search may take less time than the page waits for it.
        while not child_of(pages.process):
            assert not page.done()
            time.sleep(0.005)
        child = child_of(pages.process)
        child.send_signal(signal.SIGSTOP)
        assert BEING_READ in page.result()
    return child


@pytest.mark.journey
def test_a_prediction_is_found_by_its_request_before_it_is_collected(
    rig, served, pages
):
    answer = rig.predict_online(served.client).json()
    page = pages.answered(request_id=answer["request_id"])
    part = page.split('aria-labelledby="prediction"')[1]
    row = rig.rows(text=answer["request_id"])[0]
    assert f"<dd>{answer['probability']:.6g}</dd>" in part
    word = "" if answer["prediction"] else "not "
    assert f"<b>{answer['prediction']:g} ({word}churned_90d)</b>" in part
    assert f"b={served.first}" in part
    assert "<dt>outcome</dt><dd>not known yet</dd>" in part
    assert "<dt>features from</dt><dd>online</dd>" in part
    for name, value in row["features"].items():
        cell = '<span class="muted">missing</span>' if value is None else value
        assert f'<th scope="row">{name}</th><td class="value">{cell}</td>' in part


@pytest.mark.journey
def test_its_explanation_is_that_of_serving_and_is_not_logged(rig, served, pages):
    features = FEATURES | {"days_since_last_order": 90}
    request = {"customer_id": KNOWN, "features": features}
    answer = served.client.post("/predict", json=request).json()
    explanation = served.client.post("/explain", json=request).json()
    page = pages.answered(request_id=answer["request_id"])
    assert "Version 1 computed them just now" in page
    assert f"add up from {explanation['expected']:.4g}" in page
    for name, part in explanation["contributions"].items():
        row = page.split(f'<th scope="row">{name}</th>')[1].partition("</tr>")[0]
        figure = f"{part['contribution']:+.4g}" if part["contribution"] else "0"
        assert f'<td class="number">{figure}</td>' in row
    assert explanation["contributions"]["days_since_last_order"]["contribution"] > 0
    assert len(rig.rows(text=answer["request_id"])) == 1
    page = pages.answered(entity=f"{KNOWN}")
    assert page.count(f"request_id={answer['request_id']}") == 1


@pytest.mark.journey
def test_a_prediction_of_another_version_has_no_explanation(rig, served, pages):
    created = Registry(rig.settings).assignment(rig.spec.name).created
    line = answer(
        "of-2",
        datetime.now(UTC),
        model=rig.spec.name,
        created=created,
        version=served.second,
        entity=f"{KNOWN}",
        features=FEATURES,
    )
    file = write(rig.settings, "predictions-1-2-of.jsonl", to_json(line).decode())
    try:
        page = pages.answered(request_id="of-2")
    finally:
        file.unlink()
    reason = f"No explanation: version {served.first} answers this request now"
    assert reason in page


@pytest.mark.journey
def test_the_newest_of_an_entity_are_listed_and_its_outcome_is_shown(
    rig, served, pages
):
    answers = [rig.predict_online(served.client, 7).json() for _ in range(2)]
    newest = answers[-1]["request_id"]
    outcome = {"request_id": newest, "actual": 1}
    assert served.client.post("/feedback", json=outcome).status_code == 200
    collect(rig.settings)
    page = pages.answered(entity=" 7 ")
    assert "<dt>outcome</dt><dd><b>1 (churned_90d)</b></dd>" in page
    listed = re.findall(r'<th scope="row" class="id"><a href="[^"]*">([^<]*)</a>', page)
    # A busy Redis is asked again, so that there may be more than two.
    assert listed[0] == newest
    assert answers[0]["request_id"] in listed[1:]
    # The rows are in the table and still in the open file of the log.
    assert rig.rows(text=newest)


def test_without_a_question_the_newest_predictions_are_listed(rig, served, pages):
    rig.predict_online(served.client)
    rows = [{"customer_id": KNOWN}] * 12
    answers = served.client.post("/predict/batch", json=rows).json()
    with console_of(rig) as client:
        page = Pages(client, rig.spec.name).answered()
    listed = re.findall(r'<th scope="row" class="id"><a href="[^"]*">([^<]*)</a>', page)
    assert listed[:12] == [answer["request_id"] for answer in answers]
    assert 12 < len(listed) <= 20


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_an_unknown_request_is_said_to_be_unknown_whatever_its_id(text, served, pages):
    page = pages.answered(request_id=text)
    if text.strip("\x00"):
        assert "No prediction has the request id" in page
    assert "<script>x" not in page
    assert "Traceback" not in page


@pytest.mark.parametrize("text", ["abc", "4.5", "[" * 5000, '{"customer_id": 4}'])
def test_a_text_that_is_no_key_is_answered_with_what_is_expected(text, pages):
    start = time.monotonic()
    page = pages.now(entity=text)
    assert time.monotonic() - start < at_most(3)
    assert "expected customer_id (int64), found" in page


@pytest.mark.journey
def test_a_search_that_hangs_holds_up_no_page_and_one_that_is_killed_is_named(
    rig, served
):
    def question(number):
        return {"request_id": f"hangs-{number}"}

    with own_pages(rig) as pages:
        child = search_that_hangs(pages, **question(1))
        for number in (1, 2, 3):
            start = time.monotonic()
            assert BEING_READ in pages.now(**question(number))
            assert time.monotonic() - start < at_most(3)
        # One at a time, whatever is asked meanwhile.
        assert len(psutil.Process(pages.process.pid).children()) == 1
        child.kill()
        words = "the process that read the log was killed"
        assert words in pages.answered(**question(1))
        assert "No prediction has" in pages.answered(**question(3))


@pytest.mark.nightly
def test_an_answer_of_a_slow_search_is_shown(rig, served):
    """A search that hangs for its limit: nobody reads the answers while they are new."""
    constants = {f"{PANEL}.LIMIT_SECONDS": 12, f"{PANEL}.FRESH_SECONDS": 6}
    assert LIMIT_SECONDS == 2 * FRESH_SECONDS
    with own_pages(rig, constants) as pages:
        search_that_hangs(pages, request_id="slow-1")
        pages.now(request_id="slow-2")
        assert "was not read within 12 s" in pages.answered(request_id="slow-1")
        assert "No prediction has" in pages.answered(request_id="slow-2")


def project_of_two(folder):
    """A project with a model of three classes, and a regression whose key has two columns."""
    project = own_project(folder, "spend")
    other = own_project(folder / "other", "deliveries")
    shutil.copytree(other, project, dirs_exist_ok=True)
    return project


@pytest.mark.journey
def test_classes_numbers_and_keys_of_several_columns_are_shown(rig, tmp_path):
    (tmp_path / "other").mkdir()
    home = tmp_path / "home"
    changes = {"home": home, "project": project_of_two(tmp_path)}
    settings = rig.settings.model_copy(update=changes)
    key = {"basket": 'a "box"', "customer_id": 7}
    lines = {
        "delivery": answer(
            "d-0",
            datetime.now(UTC),
            model="delivery",
            entity="5",
            prediction=2.0,
            probability=0.6,
            probabilities=[0.1, 0.3, 0.6],
        ),
        "next_quarter_spend": answer(
            "s-0",
            datetime.now(UTC),
            model="next_quarter_spend",
            entity=json.dumps(key, sort_keys=True),
            prediction=123.5,
            probability=None,
            request_data={"coupon": "<b>"},
            features={"orders_3m": None},
        ),
    }
    texts = [to_json(line).decode() for line in lines.values()]
    write(settings, "predictions-1-1-aa.jsonl", *texts)
    beside = SimpleNamespace(settings=settings, folder=tmp_path)
    with console_of(beside) as client:
        delivery = Pages(client, "delivery").answered(entity="5")
        assert "<dt>prediction</dt><dd><b>late</b></dd>" in delivery
        assert "early 0.1, on_time 0.3, late 0.6" in delivery
        # Serving beside it has no such model.
        assert "No explanation: serving answers 404" in delivery
        spend = Pages(client, "next_quarter_spend")
        page = spend.answered(entity=json.dumps(dict(reversed(key.items()))))
        assert "<dt>prediction</dt><dd><b>123.5</b></dd>" in page
        assert "<dt>probability</dt>" not in page
        assert "<dt>coupon (of the request)</dt><dd>&lt;b&gt;</dd>" in page
        assert '<span class="muted">missing</span>' in page
        for text in ("7", '{"basket": "a"}', "[" * 5000):
            page = spend.answered(entity=text)
            assert "expected customer_id (int64), basket (string), found" in page
        assert "s-0" in spend.answered()
        assert "as JSON</span>" in page


@pytest.mark.journey
def test_a_row_that_failed_and_one_of_a_shadow_are_found_by_their_ids_in_the_log(
    rig, served, pages
):
    created = Registry(rig.settings).assignment(rig.spec.name).created
    line = answer("of-1", datetime.now(UTC), model=rig.spec.name, created=created)
    failed_line = line | FAILURE
    shadow_line = line | {"role": "shadow"}
    texts = [to_json(row).decode() for row in (failed_line, shadow_line)]
    file = write(rig.settings, "predictions-1-1-of.jsonl", *texts)
    try:
        failed = pages.answered(request_id="of-1/production/error")
        assert "failed: ValueError: no tree" in failed
        shadow = pages.answered(request_id="of-1/shadow")
        assert "<code>of-1/shadow</code>" in shadow
    finally:
        file.unlink()


@pytest.mark.journey
def test_of_many_searches_at_once_most_are_told_that_the_console_is_busy(rig, served):
    number = 60
    with own_pages(rig) as pages, ThreadPoolExecutor(number) as threads:
        begin = time.monotonic()
        texts = [*threads.map(lambda n: pages.now(request_id=f"n-{n}"), range(number))]
        seconds = time.monotonic() - begin
        busy = [text for text in texts if "other searches go on" in text]
        assert len(busy) >= number - 16
        assert seconds < at_most(10)
        assert psutil.Process(pages.process.pid).num_threads() < 100
        # The next one is answered once those that waited have their answers.
        wait_until(
            "an answer",
            lambda: "other searches go on" not in pages.answered(request_id="last"),
        )


def test_the_form_may_be_sent_to_the_console_alone(pages):
    answer = httpx.get(f"{pages.client.base_url}/status/{pages.name}?tab=predictions")
    assert "form-action 'self'" in answer.headers["content-security-policy"]
