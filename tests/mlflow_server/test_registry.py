"""The registry of an MLflow with many models, and of one that does not answer."""

import socket
import sqlite3
import time

import pytest

from core.errors import RegistryError
from core.settings import Settings
from mlflow_server.registry import Registry
from tests.conftest import at_most, unused_port


def test_more_models_than_a_page_holds_are_read_to_the_end(settings, registry):
    names = [f"page_{number:04}" for number in range(1_050)]
    with sqlite3.connect(settings.home / "mlflow" / "mlflow.db") as database:
        database.executemany(
            "INSERT INTO registered_models (name, workspace, creation_time, last_updated_time) "
            "VALUES (?, 'default', 0, 0)",
            [(name,) for name in names],
        )
    assert set(names) <= {model["name"] for model in registry.models()}


@pytest.mark.timed
def test_an_mlflow_that_is_down_or_silent_is_reported_in_one_line_soon(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (silent.getsockname()[1], unused_port()):
            registry = Registry(Settings(home=tmp_path, mlflow_port=port))
            started = time.monotonic()
            with pytest.raises(RegistryError, match="MLflow does not answer") as caught:
                registry.versions("m")
            assert time.monotonic() - started < at_most(6)
            assert "\n" not in str(caught.value)
