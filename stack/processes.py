"""The stack's processes under supervisord: restarted when they die, stopped as groups."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping  # noqa: TC003  (dataclass fields)
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xmlrpc.client import Fault, dumps, loads

from stack.ending import members
from stack.environment import process_environment
from stack.errors import StackError
from stack.marks import MARK, record_session
from stack.settings import LOOPBACK, PROJECT

if TYPE_CHECKING:
    from stack.settings import Settings

SOCKET_LIMIT = 100
"""Bytes of a unix socket's address: Linux has 107, and supervisord adds a suffix for a moment."""


@dataclass(frozen=True)
class Program:
    """One supervised process; `ready` answers None, or what it still waits for."""

    name: str
    command: list[str]
    ready: Callable[[], str | None]
    environment: Mapping[str, str] = field(default_factory=dict)


def redis(settings: Settings) -> list[str]:
    """Return the command of the system's redis-server, else of the one in this environment."""
    bundled = Path(sys.executable).parent
    path = [p for p in os.environ.get("PATH", "").split(os.pathsep) if Path(p) != bundled]
    server = shutil.which("redis-server", path=os.pathsep.join(path)) or f"{bundled}/redis-server"
    command = [server, "--bind", LOOPBACK, "--port", str(settings.redis_port)]
    command += ["--dir", str(settings.home / "redis"), "--appendonly", "yes", "--save", ""]
    return command


def render(settings: Settings, programs: list[Program]) -> str:
    """Return supervisord's configuration."""
    run, logs = settings.home / "run", settings.home / "logs"
    quoted = {name: str(value).replace("%", "%%") for name, value in {
        "socket": socket_path(settings), "run": run, "logs": logs,
    }.items()}  # fmt: skip
    head = f"""[supervisord]
logfile={quoted["logs"]}/supervisord.log
logfile_maxbytes=5MB
logfile_backups=1
pidfile={quoted["run"]}/supervisord.pid
childlogdir={quoted["logs"]}
[unix_http_server]
file={quoted["socket"]}
chmod=0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[group:gyre]
programs={",".join(program.name for program in programs)}
"""
    return head + "".join(_section(program, quoted["logs"]) for program in programs)


def _section(program: Program, logs: str) -> str:
    pairs = [_quoted(name, value) for name, value in sorted(program.environment.items())]
    return f"""[program:{program.name}]
command={shlex.join(program.command).replace("%", "%%")}
environment={",".join(pairs)}
directory={str(PROJECT).replace("%", "%%")}
autorestart=true
startsecs=2
startretries=5
stopasgroup=true
killasgroup=true
stopwaitsecs=8
redirect_stderr=true
stdout_logfile={logs}/{program.name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=2
"""


def _quoted(name: str, value: str) -> str:
    """Quote a value the way supervisord's configuration can carry it.

    Raises:
        StackError: it cannot carry this one.

    """
    if any(bad in value for bad in ('"', " ;", " #", "\n")):
        raise StackError(
            f"{name}: a quote, a line break, ' ;' or ' #' cannot be passed on: {value!r}"
        )
    return f'{name}="{value.replace("%", "%%")}"'


def socket_path(settings: Settings) -> Path:
    path = settings.home / "run" / "supervisord.sock"
    if len(os.fsencode(path)) <= SOCKET_LIMIT:
        return path
    short = f"gyre-{os.getuid()}-{zlib.crc32(os.fsencode(path)):08x}.sock"
    return Path(tempfile.gettempdir()) / short


def states(settings: Settings) -> dict[str, dict[str, Any]] | None:
    """Return supervisord's word on each process, by name; None where no supervisor answers."""
    try:
        rows = _call(settings, "supervisor.getAllProcessInfo")
    except (OSError, Fault):
        return None
    return {row["name"]: row for row in rows}


def start(settings: Settings, text: str) -> None:
    """Start supervisord with configuration `text`; it holds secrets, so only its owner reads it."""
    run, logs = settings.home / "run", settings.home / "logs"
    conf, pid = run / "supervisord.conf", run / "supervisord.pid"
    conf.touch(mode=0o600)
    conf.write_text(text)
    environment = process_environment(settings) | {MARK: str(settings.home)}
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(conf)]
    with (logs / "supervisord.out").open("w") as out:  # it detaches into a session of its own
        done = subprocess.run(
            command, env=environment, cwd=PROJECT, stdout=out, stderr=out, check=False
        )
    until = time.monotonic() + 15
    while done.returncode or not pid.exists() or states(settings) is None:
        if done.returncode or time.monotonic() > until:
            raise StackError(f"supervisord did not start:\n{last_lines(settings, 'supervisord')}")
        time.sleep(0.1)
    record_session(settings.home, int(pid.read_text()))


def restart_fallen(settings: Settings) -> list[str]:
    """Start again what the supervisor gave up on; return the names."""
    fallen = [n for n, s in (states(settings) or {}).items() if s["statename"] in _FALLEN]
    for name in fallen:
        _call(settings, "supervisor.startProcess", f"gyre:{name}", False)  # noqa: FBT003
    return fallen


def wait_ready(
    settings: Settings, programs: list[Program], say: Callable[[str], None], limit: float = 120
) -> None:
    """Wait until every program answers, saying when each does.

    Raises:
        StackError: names the process, what it waited for, and the last lines of its log.

    """
    began, waiting, last = time.monotonic(), list(programs), dict[str, str]()
    while waiting:
        now = states(settings) or {}
        for program in list(waiting):
            state = now.get(program.name, {}).get("statename", "not supervised")
            problem = program.ready() if state == "RUNNING" else state.lower()
            last[program.name] = problem or ""
            if problem is None:
                waiting.remove(program)
                say(f"  {program.name}: ready in {time.monotonic() - began:.1f} s")
            elif state == "FATAL" or time.monotonic() - began > limit:
                log = f"{settings.home}/logs/{program.name}.log"
                tail = last_lines(settings, program.name)
                raise StackError(f"{program.name} is not ready ({problem}); {log}:\n{tail}")
        time.sleep(0.25)


def last_lines(settings: Settings, name: str, count: int = 20) -> str:
    lines = []
    for suffix in ("log", "out"):
        path = settings.home / "logs" / f"{name}.{suffix}"
        if path.exists():
            lines += path.read_text(errors="replace").splitlines()[-count:]
    return "\n".join(f"    {line}" for line in lines[-count:])


def running(settings: Settings) -> bool:
    return bool(members(settings.home)) and states(settings) is not None


class _Connection(HTTPConnection):
    """HTTP over a unix socket, closed whatever happens (supervisor's own client leaves it open)."""

    def __init__(self, path: Path) -> None:
        super().__init__("supervisor")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self.path))


def _call(settings: Settings, method: str, *arguments: Any) -> Any:
    """Ask the supervisor; an OSError says that none listens."""
    with closing(_Connection(socket_path(settings))) as connection:
        text = {"Content-Type": "text/xml"}
        connection.request("POST", "/RPC2", dumps(arguments, method), text)
        return loads(connection.getresponse().read())[0][0]


_FALLEN = {"FATAL", "EXITED", "STOPPED", "UNKNOWN"}
