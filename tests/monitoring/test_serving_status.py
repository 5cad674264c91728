"""What replicas of serving say of themselves, and which of them there are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx
import pytest

from monitoring.serving_status import read_statuses
from tests.conftest import new_settings, unused_port


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


def test_replicas_are_read_as_one_and_one_that_is_not_ready_is_not_hidden(
    tmp_path, replicas
):
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
    replicas({"ready": True}, {"ready": False, "why": "no version"}, port=port)
    named = {"two": ["127.0.0.1", "127.0.0.2"], "one": ["127.0.0.1"]}
    lines = [
        f"{address} {name}\n" for name, found in named.items() for address in found
    ]
    (tmp_path / "hosts").write_text("".join(lines))
    inside = [
        shutil.which("unshare") or pytest.skip("no unshare"),
        "--map-root-user",
        "--mount",
    ]
    mount = f"mount --bind {tmp_path / 'hosts'} /etc/hosts"
    if subprocess.run(
        [*inside, "sh", "-c", mount], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")
    read = "from core.settings import load_settings as settings; from monitoring.serving_status "
    read += "import read_statuses; s = read_statuses(settings()); "
    read += "print(sorted(s), sorted(each['ready'] for each in s.values()))"
    command = [
        *inside,
        "sh",
        "-c",
        f'{mount} && exec "$@"',
        "sh",
        sys.executable,
        "-c",
        read,
    ]

    def found(name):
        env = os.environ | {
            "GYRE_HOME": str(tmp_path),
            "GYRE_SERVING_URL": f"http://{name}:{port}",
        }
        return subprocess.run(
            command, env=env, capture_output=True, text=True, check=True
        ).stdout.strip()

    each = [f"at http://127.0.0.{n}:{port}" for n in (1, 2)]
    assert (
        found("two") == f"{[f'http://two:{port} {one}' for one in each]} [False, True]"
    )
    assert found("one") == f"{[f'http://one:{port} {each[0]}']} [True]"
