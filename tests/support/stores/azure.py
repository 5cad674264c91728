"""A server that answers as Azure's Blob Storage does, on loopback: Microsoft's Azurite, of npm."""

import base64
import hashlib
import hmac
import http.client
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import running, unused_port, wait_until

VERSION = "3.37.0"
ACCOUNT = "devstoreaccount1"
# Published with Azurite, for every installation of it.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "gyre"


@contextmanager
def azure_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    """Have a container `gyre`, which this process and those that it starts reach."""
    port = unused_port()
    variables = {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{ACCOUNT}",
        "AZURE_ALLOW_HTTP": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    install = ["npm", "install", "--no-audit", "--no-fund", f"azurite@{VERSION}"]
    subprocess.run([*install, "--prefix", str(folder)], check=True, capture_output=True)
    program = folder / "node_modules/.bin/azurite-blob"
    options = f"--silent --skipApiVersionCheck --loose --blobPort {port}"
    place = ["--location", str(folder / "blobs"), "--blobHost", "127.0.0.1"]
    with running([str(program), *options.split(), *place], folder / "az.log") as azure:
        wait_until("Azure", lambda: _is_made(port))
        yield azure


def _is_made(port: int) -> bool:
    """Make the container; the client that Gyre has cannot."""
    with suppress(OSError):
        date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = {"x-ms-date": date, "x-ms-version": "2021-08-06"}
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        resource = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
        text = "PUT" + "\n" * 12 + lines + resource
        digest = hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)
        signature = base64.b64encode(digest).decode()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
        address = f"/{ACCOUNT}/{CONTAINER}?restype=container"
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            connection.request("PUT", address, headers=headers)
            return connection.getresponse().status in (201, 409)
    return False
