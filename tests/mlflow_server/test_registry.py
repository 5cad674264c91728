"""The adapter's answers, and what it says when MLflow is down or hangs."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from core.errors import RegistryError
from core.settings import Settings
from mlflow_server.ledger import Ledger, LedgerRow, now
from mlflow_server.registry import Registry
from tests.conftest import at_most, unused_port
from tests.preloaded import commands_folder

if TYPE_CHECKING:
    from pathlib import Path


def test_a_model_that_is_not_registered_has_nothing(
    registry: Registry, model: str
) -> None:
    assert [version.version for version in registry.versions(model)] == list("12345")
    assert registry.production("never_registered") is None
    assert registry.versions("never_registered") == []
    with pytest.raises(RegistryError, match="never_registered has no version 1"):
        registry.version("never_registered", "1")


def test_more_models_than_a_page_holds_are_read_to_the_end(
    settings: Settings, registry: Registry
) -> None:
    made = 1_050
    with sqlite3.connect(settings.home / "mlflow" / "mlflow.db") as database:
        for number in range(made):
            database.execute(
                "INSERT INTO registered_models (name, workspace, creation_time, last_updated_time) "
                "VALUES (?, 'default', 0, 0)",
                [f"page_{number:04}"],
            )
    names = {model["name"] for model in registry.models()}
    assert {f"page_{number:04}" for number in range(made)} <= names


@pytest.mark.timed
def test_an_mlflow_that_is_down_or_silent_is_one_line_soon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (silent.getsockname()[1], unused_port()):
            registry = Registry(Settings(home=tmp_path, mlflow_port=port))
            started = time.monotonic()
            with pytest.raises(RegistryError, match="MLflow does not answer") as caught:
                registry.versions("m")
            assert time.monotonic() - started < at_most(6)
            assert "\n" not in str(caught.value)


def test_a_sequence_is_taken_once(tmp_path: Path) -> None:
    row = LedgerRow("m", 1, "production", 100, None, "1", "ann", "", None, now())
    with closing(Ledger(Settings(home=tmp_path))) as ledger:
        ledger.insert(row)
        with pytest.raises(
            RegistryError, match=r"promotion ledger: .* UNIQUE constraint"
        ):
            ledger.insert(replace(row, who="bob"))
        assert ledger.rows("m") == [row]
        assert ledger.stamp(row) == ledger.rows("m")[0]


def test_a_ledger_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(RegistryError, match=r"promotion ledger: .*not a database"):
        Ledger(Settings(home=tmp_path))


BEGINNERS = """
import os, sys, time
from pathlib import Path
from mlflow_server.ledger import Ledger, LedgerRow, now
from core.settings import Settings
begin = time.time() + 0.2
for _ in range(8):
    if not os.fork():
        time.sleep(max(0, begin - time.time()))
        ledger = Ledger(Settings(home=Path(sys.argv[1])))
        for _ in range(5):
            with ledger.exclusive("m"):
                at = len(ledger.rows("m")) + 1
                what = ("production", 100, None, "1", "ann", "", None)
                ledger.insert(LedgerRow("m", at, *what, now()))
        os._exit(0)
sys.exit(sum(os.wait()[1] for _ in range(8)))
"""


def test_eight_processes_may_begin_the_same_ledger(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        command = [commands_folder() / "python", "-c", BEGINNERS, str(folder)]
        subprocess.run(command, check=True)
        ledger = Ledger(Settings(home=folder))
        assert [row.sequence for row in ledger.rows("m")] == list(range(1, 41))
        ledger.close()
