"""Model files that are not what was registered: in MLflow's store, and in the local copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import unused_port
from tests.serving.load import under_load

if TYPE_CHECKING:
    from collections.abc import Callable


def alter(path: Path) -> None:
    """One bit of one byte in the middle."""
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "altered": (alter, "ModelRefusedError: model.onnx: sha256 is"),
    "cut short": (cut_short, "ModelRefusedError: model.onnx: sha256 is"),
    "missing": (Path.unlink, "ArtifactError: model.onnx: MLflow answered"),
}


def stored(rig: Any, file: str) -> Path:
    """The file of the newest version in MLflow's store."""
    found = (rig.settings.home / "mlflow" / "artifacts").rglob(file)
    return max(found, key=lambda path: path.stat().st_mtime)


def replaced(file: Path, whole: bytes, damage: str, beside: Path) -> None:
    """Put a damaged file in its place at once: a fetch between would find a whole one."""
    copy = beside / file.name
    copy.write_bytes(whole)
    DAMAGES[damage][0](copy)
    copy.replace(file)


def test_what_is_not_what_was_registered_is_refused_every_time_until_it_is_whole_again(
    rig: Any, served: Any, tmp_path: Path
) -> None:
    """3: the artifact in MLflow's store is altered, then cut short. Promoted again it is tried."""
    client, version = served.client, rig.register(1.0).version
    artifact = stored(rig, "model.onnx")
    whole = artifact.read_bytes()
    with under_load(client, 1) as answers:
        for damage in ("altered", "cut short"):
            replaced(artifact, whole, damage, tmp_path)
            rig.promote(version)
            said = f"version {version} is refused: {DAMAGES[damage][1]}"
            rig.wait_until(said, lambda s=said: s in client.get("/status").text)
            assert f"version {served.first} answers" in client.get("/status").text
            rig.known_to_be_ready(client)
            rig.promote(served.first)
            rig.wait_until(
                "no refusal", lambda: "is refused:" not in client.get("/status").text
            )
    assert {(a.status, a.version) for a in answers} == {(200, served.first)}
    artifact.write_bytes(whole)
    rig.promote(version)
    rig.answers_as(client, version)
    assert "is refused:" not in client.get("/status").text
    rig.promote(served.first)
    rig.answers_as(client, served.first)


def test_a_contract_that_is_not_what_was_registered_is_refused(
    rig: Any, served: Any
) -> None:
    """3: one byte of serving.json, the other file of a version."""
    client, version = served.client, rig.register(1.0).version
    alter(stored(rig, "serving.json"))
    rig.promote(version)
    said = f"version {version} is refused: ModelRefusedError: serving.json: sha256 is"
    rig.wait_until(said, lambda: said in client.get("/status").text)
    assert rig.predict(client).json()["model_version"] == served.first
    rig.promote(served.first)
    rig.wait_until(
        "no refusal", lambda: "is refused:" not in client.get("/status").text
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_local_copy_is_refused_by_a_start_without_mlflow(
    rig: Any, served: Any, damage: str, tmp_path: Path
) -> None:
    """3: the local copy is altered, cut short or missing."""
    rig.copy_what_serves(tmp_path)
    copy = tmp_path / "serving" / "models" / rig.spec.name
    for file in copy.glob("*/model.onnx"):
        DAMAGES[damage][0](file)
    ports = {"mlflow_port": unused_port(), "serving_port": unused_port()}
    with rig.serving(home=tmp_path, **ports) as (client, _):
        rig.wait_until("a refusal", lambda: "is refused:" in client.get("/status").text)
        answer = rig.predict(client)
        assert answer.status_code == 503
        assert "model.onnx: sha256 is" in answer.json()["detail"]
        assert client.get("/health/live").status_code == 200


def test_a_start_while_a_missing_version_is_in_production_answers_with_the_last_good_one(
    rig: Any, served: Any, tmp_path: Path
) -> None:
    """3: the worker restarts while what MLflow names is missing."""
    rig.copy_what_serves(tmp_path)
    version = rig.register(1.0).version
    stored(rig, "model.onnx").unlink()
    rig.promote(version)
    said = f"version {version} is refused: {DAMAGES['missing'][1]}"
    with rig.serving(home=tmp_path, serving_port=unused_port()) as (client, _):
        rig.answers_as(client, served.first)
        rig.wait_until(said, lambda: said in client.get("/status").text)
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)
