"""An Airflow of a team: another release in an environment of its own, with a SQLite of its own."""

import json
import os
import subprocess
from contextlib import ExitStack, contextmanager

from core.project import CLONE
from tests.conftest import BIN, answers, running, unused_port, wait_until

RELEASES = {"3.0.6": "2025-09-05", "3.3.2": "2026-11-20"}
"""Releases, each with a day after it: its packages are those of that day, as a team has pinned them.
Airflow 3.0.6 does not work with PyJWT 2.11 or with FastAPI of 2026."""
USER = "team"
PASSWORD = "of the team"
PROGRAMS = ("api-server", "scheduler --skip-serve-logs", "dag-processor")


def make_environment(folder, release):
    """Install a release of Airflow, and nothing else; return the folder of its commands."""
    cache = os.environ.get("UV_CACHE_DIR", CLONE / ".uv-cache")
    uv = [BIN / "uv", "--quiet", "--cache-dir", cache]
    subprocess.run([*uv, "venv", "--python", BIN / "python", folder], check=True)
    install = [*uv, "pip", "install", "--python", folder]
    install += ["--exclude-newer", RELEASES[release], f"apache-airflow=={release}"]
    subprocess.run(install, check=True)
    return folder / "bin"


class OtherAirflow:
    """Its commands, its folder and its address."""

    def __init__(self, folder, release):
        self.home = folder / "airflow"
        self.commands = make_environment(folder / "environment", release)
        self.dags = self.home / "dags"
        self.dags.mkdir(parents=True)
        self.address = f"http://127.0.0.1:{unused_port()}"
        passwords = self.home / "passwords.json"
        passwords.write_text(json.dumps({USER: PASSWORD}))
        options = {
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__PARALLELISM": "2",
            "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
            "API__PORT": self.address.rpartition(":")[2],
            "API__HOST": "127.0.0.1",
            "API__WORKERS": "1",
            "API__SECRET_KEY": "secret " * 8,
            "API_AUTH__JWT_SECRET": "secret " * 8,
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db?timeout=30",
            "WORKERS__EXECUTION_API_TIMEOUT": "60",
        }
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GYRE_", "AIRFLOW", "PROMETHEUS_", "PYTHON"))
        }
        self.environment = kept | {
            "AIRFLOW_HOME": str(self.home),
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            **{f"AIRFLOW__{name}": value for name, value in options.items()},
        }

    def python(self, code, *arguments):
        """Return the last line that a program of its Python prints."""
        command = [self.commands / "python", "-W", "ignore", "-c", code, *arguments]
        done = subprocess.run(
            command, env=self.environment, cwd=self.home, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()[-1]

    @contextmanager
    def started(self):
        """Its programs, once they answer."""
        airflow = self.commands / "airflow"
        migrate = [airflow, "db", "migrate"]
        subprocess.run(migrate, env=self.environment, capture_output=True, check=True)
        with ExitStack() as programs:
            for name in PROGRAMS:
                log = self.home / f"{name.split()[0]}.log"
                command = [str(airflow), *name.split()]
                programs.enter_context(running(command, log, **self.environment))
            health = f"{self.address}/api/v2/monitor/health"
            wait_until("the team's Airflow", lambda: answers(health))
            yield
