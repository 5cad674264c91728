"""What replicas of serving say of themselves, and which of them there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx
import pytest

from monitoring.serving_status import read_statuses
from tests.conftest import new_settings, unused_port

READ = """
from core.settings import load_settings
from monitoring.serving_status import read_statuses
print(*read_statuses(load_settings()), sep="\\n")
"""


@pytest.fixture
def replicas():
    """Servers that answer as serving does: what a replica says of itself."""
    servers = []

    def start(*statuses, port=0):
        for number, status in enumerate(statuses, 1):
            address = (f"127.0.0.{number if port else 1}", port)
            server = HTTPServer(address, partial(Replica, status))
            Thread(target=server.serve_forever, daemon=True).start()
            servers.append(server)
        return [f"http://127.0.0.1:{server.server_port}" for server in servers]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Replica(BaseHTTPRequestHandler):
    def __init__(self, status, *args):
        self.status = status
        super().__init__(*args)

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.status).encode())

    def log_message(self, *_):
        pass


def test_the_status_of_every_replica_is_read(tmp_path, replicas):
    addresses = replicas({"ready": True}, {"ready": False, "why": "no version"})
    settings = new_settings(tmp_path, serving_url=" ".join(addresses))
    statuses = [*read_statuses(settings).values()]
    assert {"ready": False, "why": "no version"} in statuses
    assert len(statuses) == 2
    dead = new_settings(
        tmp_path, serving_url=f"{addresses[0]} http://127.0.0.1:{unused_port()}"
    )
    with pytest.raises(httpx.HTTPError):
        read_statuses(dead)


def test_a_name_with_several_addresses_stands_for_as_many_replicas(tmp_path, replicas):
    """What a headless Service is: here a namespace with an /etc/hosts of its own has the name."""
    port = unused_port()
    replicas({"ready": True}, {"ready": False}, port=port)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 two\n127.0.0.2 two\n")
    script = f"mount --bind {hosts} /etc/hosts && exec {sys.executable} -c '{READ}'"
    serving = {"GYRE_HOME": str(tmp_path), "GYRE_SERVING_URL": f"http://two:{port}"}
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        env=os.environ | serving,
        capture_output=True,
        check=False,
        text=True,
    )
    if "not permitted" in ended.stderr or "permission denied" in ended.stderr:
        pytest.skip("this machine lets nobody make a mount namespace")
    assert sorted(ended.stdout.splitlines()) == [
        f"http://two:{port} at http://127.0.0.{number}:{port}" for number in (1, 2)
    ], ended.stderr
