"""Wrong requests get 4xx with the name of the field, in strict JSON."""

import json
import socket
import time
from contextlib import suppress

import pytest

from core.spec import MISSING
from serving.scoring.scorer import MAX_REQUESTS
from tests.conftest import wait_until
from tests.serving.conftest import body_of
from tests.support.serving.refusals import ERROR, PATHS, error_of, refusal, strict

NOBODY = 99_999_999
DEEP = b"[" * 100_000 + b"]" * 100_000
NO_MODEL = {
    "plain": "/models/nobody/predict",
    "batch": "/models/nobody/predict/batch",
    "v1": "/v1/models/nobody:predict",
    "v2": "/v2/models/nobody/infer",
    "mlflow": "/models/nobody/invocations",
}
every_protocol = pytest.mark.parametrize("protocol", PATHS)


def test_an_answer_has_every_field_and_is_logged_unchanged(rig, served):
    answer = rig.predict_online(served.client, 8)
    body = strict(answer.text)
    assert list(body) == [
        "customer_id", "prediction", "probability", "model_version", "request_id",
        "features_from", "in_population", "logged",
    ]  # fmt: skip
    assert body["prediction"] == float(body["probability"] >= 0.5)
    assert body["logged"] is True
    row = rig.row_of(answer)
    for name in ("prediction", "probability", "features_from", "in_population"):
        assert row[name] == body[name]
    assert (row["entity"], row["version"]) == ("8", body["model_version"])
    assert list(row["features"]) == list(rig.spec.features)
    assert row["as_of"].endswith("+00:00")


@every_protocol
def test_an_unknown_customer_is_404_and_named_unless_features_are_given(
    rig, served, protocol
):
    def ask(row):
        body = body_of(protocol, row)
        return rig.online(lambda: served.client.post(PATHS[protocol], json=body))

    key = {"customer_id": NOBODY}
    unknown = ask(key)
    assert unknown.status_code == 404
    assert f"customer_id {NOBODY}" in error_of(unknown, protocol)
    features = rig.features if protocol in ERROR else {"features": rig.features}
    answer = ask(key | features)
    assert answer.status_code == 200
    assert "request" in answer.text


WRONG = [
    {"total_spend_30d": float("nan")}, {"total_spend_30d": float("inf")}, {"lifetime_value": 1e39},
    {"total_spend_30d": "many"}, {"total_spend_30d": None}, {"total_spend_30d": True},
    {"total_orders_30d": 1.5}, {"total_orders_30d": 2**63},
    {"customer_segment": 3}, {"customer_segment": {"a": 1}}, {"shoe_size": 44},
]  # fmt: skip


@every_protocol
def test_a_wrong_or_missing_feature_is_4xx_and_named(rig, served, protocol):
    for change in WRONG:
        (name,) = change
        body = json.dumps(body_of(protocol, rig.features | change))
        answer = served.client.post(PATHS[protocol], content=body)
        assert name in refusal(answer, protocol)
        if protocol not in ERROR:
            assert [error["loc"][-1] for error in answer.json()["detail"]] == [name]
    (name, _), *features = rig.features.items()
    part = body_of(protocol, dict(features))
    assert name in refusal(served.client.post(PATHS[protocol], json=part), protocol)


NO_REQUESTS = [
    b"", b"{", b"null", b"[]", b"{}", b'"x"', b"4", b"\xff\xfe", DEEP,
    b'{"inputs": ' + DEEP + b"}",
    b'{"instances": ' + b'[{"customer_id": ' * 20_000,
    b'{"instances": [{"customer_id": "4"}]}',
    b'{"instances": [{"customer_id": 1' + b"0" * 5000 + b"}]}",
    json.dumps({"instances": [{"customer_id": 4}] * 10_001}).encode(),
    b'{"instances": [{"lifetime_orders": 1}]}',
    b'{"customer_id": "4"}', b'{"customer_id": 4.5}', b'{"customer_id": 4, "x": 1}',
    b'{"customer_id": 1' + b"0" * 5000 + b"}", b'{"customer_id": 4, "features": null}',
    b'{"customer_id": 4, "features": ' + DEEP + b"}",
    b'{"customer_id": 4, "features": {"customer_segment": "\\ud800"}}',
]  # fmt: skip


@every_protocol
def test_a_body_that_is_no_request_is_4xx(served, protocol):
    for body in NO_REQUESTS:
        assert refusal(served.client.post(PATHS[protocol], content=body), protocol)


@every_protocol
def test_a_wrong_type_method_or_model_is_refused_in_the_form_of_the_protocol(
    rig, served, protocol
):
    path = PATHS[protocol]
    client = served.client
    row = json.dumps(body_of(protocol, rig.features))
    for header in ({"content-type": "text/csv"}, {"content-encoding": "gzip"}):
        answer = client.post(path, content=row, headers=header)
        assert answer.status_code == 415
        assert next(iter(header)) in error_of(answer, protocol)
    for method in ("GET", "PUT", "OPTIONS"):
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert error_of(answer, protocol)
    unknown = client.post(NO_MODEL[protocol], content=row)
    assert unknown.status_code == 404
    assert "there is customer_churn_model" in error_of(unknown, protocol)
    codes = {"mlflow": "RESOURCE_DOES_NOT_EXIST"}
    assert unknown.json().get("error_code") == codes.get(protocol)


def connection(client, path, length):
    """Return a connection on which the head of a request was sent."""
    url = client.base_url
    opened = socket.create_connection((url.host, url.port), timeout=600)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
    )
    opened.sendall(head.encode())
    return opened


@every_protocol
def test_a_body_over_the_limit_is_413_before_it_is_read(served, protocol):
    path = PATHS[protocol]
    with connection(served.client, path, 100_000_000) as upload:
        # To its end: the connection is closed.
        answer = upload.makefile("rb").read().decode()
    assert answer.startswith("HTTP/1.1 413 ")
    body = strict(answer.partition("\r\n\r\n")[2])
    assert "over 1" in body[ERROR.get(protocol, "detail")]

    def endless():
        while True:
            yield b" " * 65_536

    assert served.client.post(path, content=endless()).status_code == 413


def test_requests_beyond_the_limit_are_429_in_each_protocol_and_open_uploads_count(
    rig, served
):
    """Uploads are refused beyond the limit, so that memory holds them."""

    def upload():
        return connection(served.client, PATHS["batch"], 9)

    uploads = [upload() for _ in range(MAX_REQUESTS)]

    def is_full():
        if rig.predict(served.client).status_code == 429:
            return True
        # The request took the place of an upload that was not read yet.
        uploads.append(upload())
        return False

    wait_until("429", is_full)
    codes = {"mlflow": "REQUEST_LIMIT_EXCEEDED"}
    for protocol, path in PATHS.items():
        refused = served.client.post(path, json={})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "requests" in error_of(refused, protocol)
        assert refused.json().get("error_code") == codes.get(protocol)
    for opened in uploads:
        opened.close()
    wait_until("200", lambda: rig.predict(served.client).status_code == 200)


def test_a_feature_that_was_null_in_training_may_be_null(rig, served):
    row = rig.features | {"avg_order_value": None, "customer_segment": None}
    for protocol, path in PATHS.items():
        answer = served.client.post(path, json=body_of(protocol, row))
        assert answer.status_code == 200, answer.text
        if protocol == "plain":
            features = rig.row_of(answer)["features"]
            assert features["avg_order_value"] is None
            assert features["customer_segment"] == MISSING


SHORT = """
import serving.http.http1 as http1
from core.settings import load_settings
from serving.__main__ import serve

http1.REQUEST_SECONDS = 2.0
if __name__ == "__main__":
    serve(load_settings())
"""


@pytest.mark.journey
def test_a_connection_without_a_whole_request_is_closed_after_a_time(rig, served):
    home = rig.second_home()
    program = home / "short.py"
    program.write_text(SHORT)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
    beginnings = {
        b"": b"408",
        b"GET /hea": b"408",
        head: b"408",
        head + b"\r\n{": b"",
    }
    with rig.serving(str(program), home=home) as (client, _):
        url = client.base_url
        opened = []
        for beginning in beginnings:
            opened.append(socket.create_connection((url.host, url.port), 60))
            opened[-1].sendall(beginning)
        slow = socket.create_connection((url.host, url.port), 60)
        with suppress(ConnectionError):  # it is closed before the end
            for sign in b"GET /health/live HTTP/1.1\r\nHost: a":
                slow.sendall(bytes([sign]))
                time.sleep(0.1)
        for one, status in zip(opened, beginnings.values(), strict=True):
            with one, one.makefile("rb") as answer:
                assert answer.read()[9:12] == status
        with slow, suppress(ConnectionError):
            assert slow.recv(1_000)[9:12] == b"408"
        # A connection that has had an answer stays open for the next request.
        for _ in range(3):
            assert client.get("/health/live").status_code == 200
            time.sleep(1.5)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health/live HTTP/1.1\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\nHost: evil.example\r\n", 403),
        (b"GET /health/live HTTP/1.1\r\nHost: 203.0.113.9\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: 10.0.0.1:8000\r\n", 200),
        (b"GET /health/live HTTP/1.0\r\n", 200),
        (b"OPTIONS /health/live HTTP/1.0\r\n", 405),
    ],
)
def test_a_request_has_one_host_and_that_is_ours(served, head, status):
    url = served.client.base_url
    with socket.create_connection((url.host, url.port), 60) as connection:
        connection.sendall(head + b"Connection: close\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 %d " % status)


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_an_offer_of_http_2_is_ignored_and_the_body_is_read(rig, served, parts):
    """As a JDK's HttpClient and Spring's RestClient send it with each request."""
    url = served.client.base_url
    body = json.dumps({"customer_id": 8, "features": rig.features}).encode()
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    framings = (
        (b"Content-Length: %d" % len(body), body),
        (b"Transfer-Encoding: chunked", chunks),
    )
    with socket.create_connection((url.host, url.port), 10) as connection:
        answers = connection.makefile("rb")
        for header, content in (*framings, *framings):
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % header
            request = head + H2C + b"\r\n" + content
            size = -(-len(request) // parts)
            for start in range(0, len(request), size):
                connection.sendall(request[start : start + size])
                time.sleep(0.01)
            assert b"200" in answers.readline()
            headers = dict(
                line.lower().split(b": ") for line in iter(answers.readline, b"\r\n")
            )
            answer = json.loads(answers.read(int(headers[b"content-length"])))
            assert answer["customer_id"] == 8


@pytest.mark.parametrize(
    "path",
    ["/health/live", "/health/ready", "/ping", "/v2/health/ready", "/metrics", "/docs"],
)
def test_head_is_answered_as_get_without_a_body(served, path):
    forms = [path] if path == "/metrics" else [path, f"{path}/"]
    for form in forms:
        answer = served.client.head(form)
        assert (answer.status_code, answer.content) == (200, b"")
        assert served.client.get(form).status_code == 200


@every_protocol
def test_a_slash_at_the_end_changes_nothing(rig, served, protocol):
    body = body_of(protocol, {"customer_id": 8})
    path = f"{PATHS[protocol]}/"
    answer = rig.online(lambda: served.client.post(path, json=body))
    assert answer.status_code == 200
    unknown = served.client.post(f"{NO_MODEL[protocol]}/", json=body)
    assert unknown.status_code == 404
    assert "nobody" in error_of(unknown, protocol)
