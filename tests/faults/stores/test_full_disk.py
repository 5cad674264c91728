"""A disk that takes nothing more, under serving's home."""

import shutil

import pytest
from onnx import TensorProto, helper

from tests.conftest import wait_until
from tests.faults.conftest import shows, workers
from tests.serving.conftest import tiny_onnx
from tests.support.tools.small_disk import fill, small_disk


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path, megabytes=4) as folder:
        yield folder


def too_large():
    """More than what a copy that holds no role any more makes room for."""
    model = tiny_onnx(1.0)
    unused = helper.make_tensor("unused", TensorProto.INT64, [100_000], range(100_000))
    model.graph.initializer.append(unused)
    return model


def test_a_loaded_version_is_promoted_and_a_large_version_refused_on_a_full_disk(
    rig, served, disk
):
    """10: also by a worker that starts then."""
    rig.swap(served.client, served.second)
    home = rig.second_home(disk)
    (home / "serving" / "log").unlink()
    with rig.serving(home=home) as (client, process):
        previous = home / "serving" / "models" / rig.spec.name / served.first
        wait_until("the version before", previous.is_dir)
        rig.answers_as(client, served.second)
        # A copy without a role makes room for the refusal.
        shutil.copytree(previous, previous.with_name("99"))
        fill(disk)
        wait_until("no row on file", lambda: not rig.predict(client).json()["logged"])
        rig.swap(client, served.first)
        third = rig.register(1.0, model=too_large()).version
        rig.promote(third)
        shows(client, f"version {third} is refused: ")
        shows(client, "No space left on device")
        assert [*disk.rglob("*.part")] == []
        (killed,) = workers(process)
        killed.kill()
        killed.wait()
        rig.known_to_be_ready(client)
        rig.answers_as(client, served.first)
        process.terminate()
        assert process.wait(600) == 0
    rig.swap(served.client, served.first)
