"""Many requests at once, their metrics, and the end of the server."""

import socket

from serving.scorer import MAX_REQUESTS
from tests.conftest import wait_until
from tests.serving.test_edges import PATHS, error_of


def connection(client, request):
    """A connection on which a request was sent."""
    url = client.base_url
    opened = socket.create_connection((url.host, url.port), timeout=600)
    opened.sendall(request)
    return opened


def test_requests_beyond_the_limit_are_429_in_each_protocol_and_open_uploads_count(
    rig, served
):
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
