"""Many requests at once, their metrics, and the end of the server."""

from __future__ import annotations

import json
import select
import socket
from concurrent.futures import ThreadPoolExecutor

from serving.scorer import MAX_REQUESTS
from tests.conftest import unused_port, wait_until
from tests.serving.test_edges import PATHS, error_of

BODY = b'{"customer_id": 4}'
POST = (
    b"POST /predict HTTP/1.1\r\nhost: gyre\r\ncontent-length: %d\r\n\r\n" % len(BODY)
    + BODY
)


def connection(client, request):
    """A connection on which a request was sent."""
    url = client.base_url
    opened = socket.create_connection((url.host, url.port), timeout=600)
    opened.sendall(request)
    return opened


def test_metrics_name_version_route_and_status(rig, served):
    rig.predict_online(served.client)
    served.client.get("/v1/models/nobody")
    served.client.get("/nothing-of-that-name")
    text = served.client.get("/metrics").text
    model = f'model="{rig.spec.name}"'
    for line in (
        f'gyre_model_info{{{model},role="production",version="{served.first}"}} 1.0',
        f'gyre_requests_total{{{model},route="/predict",status="200"}}',
        'gyre_requests_total{model="",route="/v1/models/{name}",status="404"}',
        'gyre_requests_total{model="",route="",status="404"}',
        "gyre_feature_watermark_age_seconds{",
        'gyre_predictions_total{features_from="online"',
        "gyre_prediction_seconds_bucket{",
    ):
        assert line in text


def test_too_many_requests_are_429_in_each_form_and_begun_uploads_count(rig, served):
    """Uploads are refused beyond the limit, so that memory holds them."""
    head = b"POST /predict/batch HTTP/1.1\r\nhost: gyre\r\ncontent-length: 9\r\n\r\n"
    uploads = [connection(served.client, head) for _ in range(MAX_REQUESTS)]

    def is_full():
        if rig.predict(served.client).status_code == 429:
            return True
        # The request took the place of an upload that was not read yet.
        uploads.append(connection(served.client, head))
        return False

    wait_until("429", is_full)
    codes = {"mlflow": "REQUEST_LIMIT_EXCEEDED"}
    for protocol, path in PATHS.items():
        refused = served.client.post(path, json={})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "requests" in error_of(refused, protocol)
        assert refused.json().get("error_code") == codes.get(protocol)
    for upload in uploads:
        upload.close()
    wait_until("200", lambda: rig.predict(served.client).status_code == 200)


def test_requests_at_once_get_their_own_answers(rig, served):
    def ask(key):
        answer = rig.predict_online(served.client, key)
        return key, answer.status_code, answer.text

    with ThreadPoolExecutor(32) as many:
        answers = [*many.map(ask, [*range(1, 200), *([99_999_999] * 20)])]
    for key, status, text in answers:
        assert status == (404 if key == 99_999_999 else 200)
        assert str(key) in text


def test_requests_that_have_begun_are_answered_before_the_server_ends(rig, served):
    """SIGTERM with a hundred requests in its sockets: whole answers, or not a row and no byte."""
    server = rig.serving(home=rig.home_beside(), serving_port=unused_port())
    with server as (client, process):
        rig.known_to_be_ready(client)
        rows = len(rig.rows())
        connections = [connection(client, POST) for _ in range(100)]
        select.select(connections, [], [])  # the first answer
        process.terminate()
        answers = [answer for answer in map(read_to_end, connections) if answer]
        assert process.wait(600) == 0
    for answer in answers:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert json.loads(body)["customer_id"] == 4
    assert answers
    assert len(rig.rows()) - rows == len(answers)


def read_to_end(opened):
    """Read an answer; none of a request that waited yet unread, which the system resets."""
    received = b""
    with opened:
        try:
            part = opened.recv(65_536)
            while part:
                received += part
                part = opened.recv(65_536)
        except ConnectionResetError:
            assert received == b""
    return received
