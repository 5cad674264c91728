"""No tool reports to its makers what it is used for, and no proxy stands between own programs."""

import subprocess
import sys
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from core import UNREPORTED
from core.project import PROJECT
from core.settings import Settings
from stack.environment import child_environment
from tests.serving.conftest import tiny_onnx

ASK = """
import sys, core, httpx, requests
print([client.get(sys.argv[1], timeout=5).status_code for client in (httpx, requests)])
import os
print(os.environ["NO_PROXY"])
"""
SCORE = """
import sys
from serving.versions.model import ort
ort.InferenceSession(sys.stdin.buffer.read(), providers=["CPUExecutionProvider"])
"""


def output_of(program, *arguments, content=b"", **environment):
    """What a program prints in an environment of nothing else."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.check_output(
        command, input=content, cwd=PROJECT, env=environment
    ).decode()


@pytest.mark.parametrize("kept", ["", "corp.example"])
def test_programs_of_this_machine_are_reached_without_the_proxy(kept):
    nowhere = "http://192.0.2.1:9"
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        output = output_of(
            ASK, address, HTTP_PROXY=nowhere, http_proxy=nowhere, NO_PROXY=kept
        )
        server.shutdown()
    answers, no_proxy = output.splitlines()
    assert answers == "[200, 200]"
    assert no_proxy == f"{kept},127.0.0.1,localhost,::1".lstrip(",")


def test_onnx_runtime_keeps_no_record_of_a_session(tmp_path):
    """In a shell without our variables it would write one, to be sent, into HOME."""
    output_of(SCORE, content=tiny_onnx(0.0).SerializeToString(), HOME=str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if "icrosoft" in path.name] == []


def test_processes_and_shells_get_the_variables_that_forbid_usage_reports(tmp_path):
    assert UNREPORTED.items() <= child_environment(Settings(home=tmp_path)).items()
