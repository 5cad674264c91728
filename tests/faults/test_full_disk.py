"""A disk that takes nothing more, under serving's home."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from onnx import TensorProto, helper

from tests.conftest import unused_port, wait_until
from tests.faults.conftest import workers
from tests.serving.conftest import tiny_onnx

if TYPE_CHECKING:
    from pathlib import Path

    import onnx


@pytest.fixture
def disk(tmp_path):
    """A small one of its own."""
    if os.getuid():
        pytest.skip("only root may mount a disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "gyre", str(tmp_path)]
    subprocess.run(mount, check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(disk: Path) -> None:
    with (disk / "full").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def too_large() -> onnx.ModelProto:
    """More than what a copy that holds no role any more makes room for."""
    model = tiny_onnx(1.0)
    numbers = [float(n) for n in range(100_000)]
    unused = helper.make_tensor("unused", TensorProto.FLOAT, [100_000], numbers)
    model.graph.initializer.append(unused)
    return model


def test_on_a_full_disk_a_loaded_version_is_promoted_and_a_large_one_refused(
    rig, served, disk
):
    """10: also by a worker that starts then."""
    rig.promote(served.second)
    rig.answers_as(served.client, served.second)
    home = rig.home_beside(disk)
    (home / "serving" / "log").unlink()
    with rig.serving(home=home, serving_port=unused_port()) as (client, process):
        previous = home / "serving" / "models" / rig.spec.name / served.first
        wait_until("the version before", previous.is_dir)
        rig.answers_as(client, served.second)
        fill(disk)
        wait_until("no row on file", lambda: not rig.predict(client).json()["logged"])
        rig.promote(served.first)
        rig.answers_as(client, served.first)
        third = rig.register(1.0, model=too_large()).version
        rig.promote(third)
        refusal = f"version {third} is refused: "
        wait_until(refusal, lambda: refusal in client.get("/status").text)
        assert "No space left on device" in client.get("/status").text
        (killed,) = workers(process)
        killed.kill()
        killed.wait()
        rig.known_to_be_ready(client)
        rig.answers_as(client, served.first)
        process.terminate()
        assert process.wait(600) == 0
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)
