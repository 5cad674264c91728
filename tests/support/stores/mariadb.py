"""A MariaDB of Debian's packages, which answers as MySQL does."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import running, unused_port, wait_until
from tests.support.tools.debian import install, of_journeys

USER = "gyre"
PASSWORD = "secret"
DATABASE = "gyre"


class MariaDB:
    """A server on a port of its own."""

    def __init__(self, port: int, socket: Path) -> None:
        self.port = port
        self.socket = socket
        self.address = f"mysql://{USER}:{PASSWORD}@127.0.0.1:{port}/{DATABASE}"

    def run(self, statements: str) -> subprocess.CompletedProcess[str]:
        """Run SQL as the server's own user, who needs no password."""
        command = ["mariadb", "--no-defaults", f"--socket={self.socket}", "--user=root"]
        return subprocess.run(
            [*command, "--batch", "--skip-column-names"],
            input=statements,
            capture_output=True,
            text=True,
            check=False,
        )


@contextmanager
def mariadb_server(log: Path) -> Iterator[MariaDB]:
    """A server with an empty database, which a user reaches by a password."""
    of_journeys("MariaDB")
    if not program():
        install("mariadb-server")
    port = unused_port()
    folder = Path("/tmp") / f"gyre-mariadb-{port}"
    folder.mkdir(mode=0o755)
    user = []
    if os.geteuid() == 0:
        shutil.chown(folder, "mysql", "mysql")
        user = ["--user=mysql"]
    data = f"--datadir={folder}/data"
    server = MariaDB(port, folder / "socket")
    try:
        command = ["mariadb-install-db", "--no-defaults", data, *user]
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        with log.open("ab") as output:
            subprocess.run(
                [*command, *options], check=True, stdout=output, stderr=output
            )
        command = [program(), "--no-defaults", data, *user, f"--socket={server.socket}"]
        options = [f"--port={port}", "--bind-address=127.0.0.1"]
        with running([*command, *options], log):
            wait_until("MariaDB", lambda: server.run("SELECT 1").returncode == 0)
            made = server.run(
                f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4; "
                f"CREATE USER {USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'; "
                f"GRANT ALL ON {DATABASE}.* TO {USER}@'127.0.0.1'"
            )
            assert made.returncode == 0, made.stderr
            yield server
    finally:
        shutil.rmtree(folder)


def program() -> str:
    """The server lies outside the path of users who are not root."""
    places = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
    return shutil.which("mariadbd", path=places) or ""


@pytest.fixture(scope="module")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    """One server for a file of tests that imports it."""
    with mariadb_server(tmp_path_factory.mktemp("mariadb") / "log") as server:
        yield server
