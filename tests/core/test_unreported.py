"""No tool reports to its makers what it is used for."""

import subprocess
import sys

from core import UNREPORTED
from core.settings import PROJECT, Settings
from stack.environment import child_environment
from tests.serving.conftest import tiny_onnx

PROGRAM = """
import sys
from serving.model import ort
ort.InferenceSession(sys.stdin.buffer.read(), providers=["CPUExecutionProvider"])
"""


def test_onnx_runtime_keeps_no_record_of_a_session(tmp_path):
    """In a shell without our variables it would write one, to be sent, into HOME."""
    model = tiny_onnx(0.0).SerializeToString()
    command = [sys.executable, "-c", PROGRAM]
    environment = {"HOME": str(tmp_path)}
    subprocess.run(command, input=model, cwd=PROJECT, check=True, env=environment)
    assert [path for path in tmp_path.rglob("*") if "icrosoft" in path.name] == []


def test_processes_and_shells_get_the_variables_that_forbid_usage_reports(tmp_path):
    assert UNREPORTED.items() <= child_environment(Settings(home=tmp_path)).items()
