"""No tool reports to its makers what it is used for."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from core import UNREPORTED
from core.settings import PROJECT, Settings
from stack.environment import child_environment
from tests.serving.conftest import tiny_onnx

if TYPE_CHECKING:
    from pathlib import Path

OPEN = "; {0}.InferenceSession(sys.stdin.buffer.read(), providers=['CPUExecutionProvider'])"


@pytest.mark.parametrize(
    "program",
    ["import sys, serving.model" + OPEN.format("serving.model.ort"),
     "import sys, training.scoring" + OPEN.format("training.scoring.onnxruntime")],
)  # fmt: skip
def test_onnx_runtime_keeps_no_record_of_a_session(
    tmp_path: Path, program: str
) -> None:
    """In a shell that knows nothing of us: it would write one, to be sent, into HOME."""
    model = tiny_onnx(0.0).SerializeToString()
    subprocess.run(
        [sys.executable, "-c", program], input=model, cwd=PROJECT, check=True,
        env={"HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "ours")},
    )  # fmt: skip
    assert [path for path in tmp_path.rglob("*") if "icrosoft" in path.name] == []


def test_processes_and_shells_are_told(tmp_path: Path) -> None:
    assert UNREPORTED.items() <= child_environment(Settings(home=tmp_path)).items()
