"""A page of another site, in Chromium, writes and reads nothing, also under a name for our address."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from docs.browser import browser
from stack.environment import process_environment
from tests.conftest import BIN, answers, running, wait_until
from tests.serving.conftest import KNOWN
from tests.support.tools.programs import needs_chromium

pytestmark = pytest.mark.journey
EVIL = "evil.example"
ATTACK = """(async () => {
  const [serving, mlflow, outcome, key] = %s;
  const json = JSON.stringify(outcome);
  const bodies = [new Blob([json]), new TextEncoder().encode(json), json,
    new Blob([json], {type: "application/json"}), new URLSearchParams({a: 1})];
  const targets = [serving + "/feedback", serving + "/predict", serving + "/events/orders",
    serving + "/models/churn/predictions", mlflow + "/api/2.0/mlflow/experiments/create",
    mlflow + "/ajax-api/2.0/mlflow/experiments/create"];
  for (const target of targets) for (const body of bodies) {
    for (const mode of ["no-cors", "cors"]) {
      try { await fetch(target, {method: "POST", mode, body, credentials: "include"}); } catch {}
    }
    navigator.sendBeacon(target, body);
  }
  for (const target of targets) {
    const frame = document.createElement("iframe");
    frame.name = "f" + Math.random();
    document.body.append(frame);
    const form = document.createElement("form");
    Object.assign(form, {method: "post", action: target, target: frame.name, enctype: "text/plain"});
    const input = document.createElement("input");
    Object.assign(input, {name: json.slice(0, -1) + ',"x":"', value: '"}'});
    form.append(input);
    document.body.append(form);
    form.submit();
  }
  const opened = [];
  const attempts = [serving, mlflow].map((base) => new Promise((done) => {
    const socket = new WebSocket(base.replace("http", "ws") + "/feedback");
    socket.onopen = () => { opened.push("socket " + base); done(); };
    socket.onerror = () => done();
  }));
  attempts.push(...[serving + "/metrics", mlflow + "/version"].map((url) => new Promise((done) => {
    const events = new EventSource(url);
    events.onopen = () => { opened.push("events " + url); done(); };
    events.onerror = () => { events.close(); done(); };
  })));
  await Promise.all(attempts);
  for (const url of [serving + "/metrics", mlflow + "/version",
      mlflow + "/api/2.0/mlflow/experiments/get?experiment_id=0"]) {
    try { opened.push("read " + (await (await fetch(url)).text()).slice(0, 20)); } catch {}
  }
  return JSON.stringify(opened);
})()"""
SAME_ORIGIN = """(async () => {
  const answer = await fetch("/predict", {method: "POST",
    headers: {"content-type": "application/json"}, body: JSON.stringify(%s)});
  return `${answer.status}`;
})()"""


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html><body>another site</body></html>")

    def log_message(self, *_):
        pass


@contextmanager
def other_site():
    """A server on a free port; the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def evaluate(chromium, expression):
    done = chromium.do(
        "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
    )
    return done["result"]["value"]


@needs_chromium
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", EVIL])
def test_a_page_of_another_port_or_site_writes_and_reads_nothing(rig, served, host):
    outcome = {
        "request_id": f"from {host}".replace(" ", "-"),
        "actual": 1,
        "name": f"made by {host}",
    }
    places = [
        served.client.base_url.copy_with(raw_path=b""),
        rig.settings.mlflow_address,
    ]
    arguments = [*(str(place).rstrip("/") for place in places), outcome, KNOWN]
    before = len(rig.rows()), len(rig.rows("feedback"))
    with (
        other_site() as port,
        browser(f"--host-resolver-rules=MAP {EVIL} 127.0.0.1") as chromium,
    ):
        chromium.open(f"http://{host}:{port}/", 1000)
        assert evaluate(chromium, ATTACK % json.dumps(arguments)) == "[]"
    assert (len(rig.rows()), len(rig.rows("feedback"))) == before
    made = served.client.get(
        f"{rig.settings.mlflow_address}/api/2.0/mlflow/experiments/get-by-name",
        params={"experiment_name": outcome["name"]},
    )
    assert made.status_code == 404


@needs_chromium
def test_a_name_that_is_given_our_address_is_answered_by_no_server(rig, served):
    rules = f"--host-resolver-rules=MAP {EVIL} 127.0.0.1"
    settings = rig.settings
    console = [str(BIN / "python"), "-m", "monitoring.console"]
    variables = process_environment(settings)
    before = len(rig.rows())
    with (
        running(console, rig.folder / "console.log", **variables),
        browser(rules) as chromium,
    ):
        wait_until(
            "console", lambda: answers(f"{settings.console_address}/health/live")
        )
        for port, path in (
            (served.client.base_url.port, "/docs"),
            (settings.mlflow_port, "/"),
            (settings.mlflow_port, "/version"),
            (settings.console_port, "/"),
        ):
            chromium.open(f"http://{EVIL}:{port}{path}", 1000)
            text = evaluate(chromium, "document.body.innerText")
            assert "no name of Gyre" in text
            assert len(text) < 300
        chromium.open(f"http://{EVIL}:{served.client.base_url.port}/health/live", 1000)
        assert (
            evaluate(chromium, SAME_ORIGIN % json.dumps({"customer_id": KNOWN}))
            == "403"
        )
        # The page of the server itself works.
        chromium.open(f"{str(served.client.base_url).rstrip('/')}/docs", 1000)
        assert (
            evaluate(chromium, SAME_ORIGIN % json.dumps({"customer_id": KNOWN}))
            == "200"
        )
    assert len(rig.rows()) == before + 1


def test_a_body_without_a_type_is_taken_from_a_client_and_not_from_a_browser(served):
    body = json.dumps({"customer_id": KNOWN}).encode()
    origin = str(served.client.base_url).rstrip("/")
    for headers, status in (
        ({}, 200),
        ({"sec-fetch-site": "same-origin"}, 415),
        ({"origin": origin}, 415),
        ({"origin": origin, "content-type": "application/json"}, 200),
    ):
        request = served.client.build_request(
            "POST", "/predict", content=body, headers=headers
        )
        assert served.client.send(request).status_code == status
