"""A proxy of the machine's environment stands between a stack's own programs for none of them."""

import subprocess
import sys
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from core.settings import PROJECT

ASK = """
import sys, core, httpx, requests
print([client.get(sys.argv[1], timeout=5).status_code for client in (httpx, requests)])
import os
print(os.environ["NO_PROXY"])
"""


@pytest.mark.parametrize("kept", ["", "corp.example"])
def test_programs_of_this_machine_are_reached_without_the_proxy(kept):
    nowhere = "http://192.0.2.1:9"
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        done = subprocess.run(
            [sys.executable, "-c", ASK, address],
            cwd=PROJECT,
            env={"HTTP_PROXY": nowhere, "http_proxy": nowhere, "NO_PROXY": kept},
            capture_output=True,
            text=True,
            check=True,
        )
        server.shutdown()
    answers, no_proxy = done.stdout.splitlines()
    assert answers == "[200, 200]"
    assert no_proxy == f"{kept},127.0.0.1,localhost,::1".lstrip(",")
