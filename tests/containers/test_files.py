"""deploy/compose.yaml names files that there are. No container is needed."""

from __future__ import annotations

import shutil
import subprocess

import yaml

from core.settings import CLONE

DEPLOY = CLONE / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"].values()


def test_every_file_that_a_container_mounts_is_there():
    volumes = [volume for service in SERVICES for volume in service.get("volumes", ())]
    sources = {volume.split(":")[0] for volume in volumes}
    files = [source for source in sources if source.startswith("./")]
    assert files
    assert [file for file in files if not (DEPLOY / file).exists()] == []


def test_every_secret_is_written_by_the_script_and_given_to_a_container(tmp_path):
    shutil.copy(DEPLOY / "secrets.sh", tmp_path)
    subprocess.run(["sh", "secrets.sh"], cwd=tmp_path, check=True, capture_output=True)
    written = {f"secrets/{file.name}" for file in (tmp_path / "secrets").iterdir()}
    assert {secret["file"] for secret in COMPOSE["secrets"].values()} == written
    given = [secret for service in SERVICES for secret in service.get("secrets", ())]
    assert {*given} == COMPOSE["secrets"].keys()
