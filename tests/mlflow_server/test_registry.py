"""The adapter's answers, and what it says when MLflow is down or hangs."""

from __future__ import annotations

import socket
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
from tests.conftest import at_most
from tests.preloaded import commands_folder

if TYPE_CHECKING:
    from pathlib import Path


def test_an_empty_registry_answers_with_nothing(registry: Registry) -> None:
    assert registry.production("never_registered") is None
    assert registry.aliases("never_registered") == {}
    assert registry.versions("never_registered") == []
    with pytest.raises(RegistryError, match="version 1 of never_registered"):
        registry.version("never_registered", "1")


def test_versions_are_our_own_small_type(registry: Registry, model: str) -> None:
    assert [version.version for version in registry.versions(model)] == list("12345")
    version = registry.version(model, "2")
    assert (version.model, version.version, version.tags) == (model, "2", {})


@pytest.mark.timed
def test_mlflow_down_is_one_line_at_once(tmp_path: Path, free_port: int) -> None:
    registry = Registry(Settings(home=tmp_path, mlflow_port=free_port))
    started = time.monotonic()
    with pytest.raises(
        RegistryError, match="aliases of m: MLflow does not answer"
    ) as caught:
        registry.production("m")
    assert time.monotonic() - started < at_most(6)
    assert "\n" not in str(caught.value)


@pytest.mark.timed
def test_mlflow_that_accepts_and_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        registry = Registry(
            Settings(home=tmp_path, mlflow_port=silent.getsockname()[1])
        )
        started = time.monotonic()
        with pytest.raises(RegistryError, match="MLflow does not answer"):
            registry.versions("m")
        assert time.monotonic() - started < at_most(6)


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
