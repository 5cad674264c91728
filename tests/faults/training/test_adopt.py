"""An adoption that is killed on the way, and tables and models that are damaged."""

import subprocess
import sys
import time

import pytest

from mlflow_server.api.registry import Registry
from stack.environment import process_environment
from tests.conftest import BIN, mlflow_server, new_settings
from tests.support.training.loans import MODEL, SPEC, gyre, make_project, save_model

SHARES = (0.4, 0.7, 0.9)
"""Shares of the time of an adoption after which it is killed."""


@pytest.fixture
def folder(tmp_path):
    """A project with a table of loans, and a model that a team saved."""
    folder = tmp_path / "project"
    folder.mkdir()
    make_project(
        folder, SPEC.partition("[[estimators]]")[0] + SPEC[SPEC.index("[[gates]]") :]
    )
    save_model(folder / "saved")
    return folder


def test_an_adoption_killed_at_any_point_leaves_no_half_version(tmp_path, folder):
    settings = new_settings(tmp_path / "home")
    environment = process_environment(settings) | {"GYRE_PROJECT": str(folder)}
    command = [sys.executable, BIN / "gyre", "adopt", MODEL, "saved"]
    with mlflow_server(settings):
        begin = time.monotonic()
        first = gyre(settings, folder, "adopt", MODEL, "saved")
        seconds = time.monotonic() - begin
        assert "version 1 is in production" in first.stdout, first.stderr
        registry = Registry(settings)
        for share in SHARES:
            with subprocess.Popen(command, cwd=folder, env=environment) as process:
                time.sleep(share * seconds)
                process.kill()
            assert registry.production(MODEL) is not None
        last = gyre(settings, folder, "adopt", MODEL, "saved")
        assert "is in production" in last.stdout, last.stderr
        versions = [version.version for version in registry.versions(MODEL)]
        assert registry.production(MODEL) == max(versions, key=int)
        assert not [each for each in versions if registry.damage(MODEL, each)]


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("loans.parquet", "loans.parquet"),
        ("saved/model.skops", "model.skops: sklearn cannot open it"),
        ("saved/MLmodel", "saved"),
    ],
)
def test_a_damaged_table_or_model_is_named_and_registers_nothing(
    tmp_path, folder, damaged, message
):
    settings = new_settings(tmp_path / "home")
    file = folder / damaged
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with mlflow_server(settings):
        done = gyre(settings, folder, "adopt", MODEL, "saved")
        assert done.returncode != 0
        assert message in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
        assert not Registry(settings).versions(MODEL)
