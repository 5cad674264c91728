"""A PostgreSQL of Debian's packages."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from tests.conftest import unused_port, wait_until
from tests.support.tools.debian import install, of_journeys

PLACES = ("usr/lib/postgresql/*/bin", "usr/local/bin", "usr/bin")


class Postgres:
    """A server on a port of its own; it refuses to run as root."""

    def __init__(self, folder: Path, log: Path, host: str) -> None:
        port = unused_port()
        self.log = log
        self.binaries = programs()
        self.as_user = ""
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
            self.as_user = "setpriv --reuid=postgres --regid=postgres --clear-groups"
        self.data = f"-D {folder}/data"
        self.options = f"-h {host} -p {port} -k {folder} -F -c log_statement=all"
        self.address = f"postgres://gyre@{host}:{port}/postgres"
        command = self._command("initdb", "-U gyre -A trust -E UTF8")
        # Its errors are shown, as a full disk is one.
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")
        with (folder / "data" / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {host}/8 trust\n")

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = self._command("postgres", self.options)
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        wait_until("PostgreSQL", self.answers)

    def stop(self) -> None:
        """As `systemctl restart` does: connections are ended."""
        self.process.send_signal(2)
        self.process.wait(600)

    def answers(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self.address):
            return True
        return False

    def _command(self, program: str, options: str) -> list[str]:
        command = f"{self.as_user} {self.binaries}/{program} {self.data} {options}"
        return command.split()


@contextmanager
def postgres_server(log: Path, host: str = "127.0.0.1") -> Iterator[Postgres]:
    """A server without any table of ours; nobody but the test knows its port.

    Args:
        log: What it writes.
        host: The address that it listens on; hosts of the same first number may connect.

    """
    of_journeys("PostgreSQL")
    folder = Path("/tmp") / f"gyre-postgres-{unused_port()}"
    folder.mkdir(mode=0o755)
    try:
        server = Postgres(folder, log, host)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def programs() -> Path:
    """Where initdb and postgres are; Debian's package is installed where they are not."""

    def found() -> list[Path]:
        return [file for place in PLACES for file in Path("/").glob(f"{place}/initdb")]

    if not found():
        install("postgresql")
    return found()[0].resolve().parent


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """One server for a file of tests that imports it."""
    with postgres_server(tmp_path_factory.mktemp("postgres") / "log") as server:
        yield server
