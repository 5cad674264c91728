"""What replicas of serving say of themselves, and which of them there are."""

import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
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
def port(tmp_path):
    """Of two replicas, 127.0.0.1 and 127.0.0.2, which answer as serving does."""
    port = unused_port()
    (tmp_path / "status").write_text('"ready"')
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ExitStack() as opened:
        for host in ("127.0.0.1", "127.0.0.2"):
            server = opened.enter_context(HTTPServer((host, port), handler))
            Thread(target=server.serve_forever, daemon=True).start()
            opened.callback(server.shutdown)
        yield port


def test_the_status_of_every_replica_is_read(tmp_path, port):
    addresses = [f"http://127.0.0.{number}:{port}" for number in (1, 2)]
    settings = new_settings(tmp_path, serving_url=" ".join(addresses))
    assert [*read_statuses(settings).values()] == ["ready", "ready"]
    dead = f"{addresses[0]} http://127.0.0.1:{unused_port()}"
    with pytest.raises(httpx.HTTPError):
        read_statuses(new_settings(tmp_path, serving_url=dead))


def test_a_name_with_several_addresses_stands_for_as_many_replicas(tmp_path, port):
    """What a headless Service is: here a namespace with an /etc/hosts of its own has the name."""
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
