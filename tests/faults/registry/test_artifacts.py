"""Model files that are not what was registered: in MLflow's store, and in the local copy."""

from pathlib import Path

import pytest

from tests.conftest import unused_port
from tests.faults.conftest import shows, shows_no_refusal
from tests.support.serving.load import under_load


def alter(path):
    """One bit of one byte in the middle."""
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = [
    ("model.onnx", alter, "ModelRefusedError: model.onnx: sha256 is"),
    ("model.onnx", Path.unlink, "ArtifactError: model.onnx: MLflow answered"),
    ("serving.json", cut_short, "ModelRefusedError: serving.json: sha256 is"),
]
"""A file of a version, what happens to it, and the refusal."""


def stored(rig, file):
    """Return the file of the newest version in MLflow's store."""
    files = (rig.settings.home / "mlflow" / "artifacts").rglob(file)
    return max(files, key=lambda path: path.stat().st_mtime)


def test_a_version_with_a_damaged_file_is_refused_until_the_file_is_complete(
    rig, served
):
    """3: altered, cut short or missing in MLflow's store; promoted again, it is tried again."""
    client = served.client
    with under_load(client, 1) as answers:
        for name, damage, reason in DAMAGES:
            version = rig.register(1.0).version
            file = stored(rig, name)
            whole = file.read_bytes()
            damage(file)
            rig.promote(version)
            shows(client, f"version {version} is refused: {reason}")
            shows(client, f"version {served.first} answers")
            rig.known_to_be_ready(client)
            rig.promote(served.first)
            shows_no_refusal(client)
    assert {(a.status, a.version) for a in answers} == {(200, served.first)}
    file.write_bytes(whole)
    rig.swap(client, version)
    shows_no_refusal(client)
    rig.swap(client, served.first)


@pytest.mark.parametrize("damage", [cut_short, Path.unlink])
def test_a_damaged_local_copy_is_refused_by_a_start_without_mlflow(
    rig, served, damage, tmp_path
):
    """3: the local copy is cut short or missing."""
    rig.copy_serving_files(tmp_path)
    for file in tmp_path.glob(f"serving/models/{rig.spec.name}/*/model.onnx"):
        damage(file)
    with rig.serving(home=tmp_path, mlflow_port=unused_port()) as (client, _):
        shows(client, "is refused:")
        answer = rig.predict(client)
        assert answer.status_code == 503
        assert "model.onnx: sha256 is" in answer.json()["detail"]
