"""The stack's processes under supervisord: restarted when they die, stopped as groups."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping  # noqa: TC003  (dataclass fields)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xmlrpc.client import Error, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from stack.environment import process_environment
from stack.errors import StackError
from stack.preflight import MARK
from stack.settings import PROJECT
from stack.sockets import socket_path

if TYPE_CHECKING:
    from stack.settings import Settings

SUPERVISOR = "supervisord"
FALLEN = {"FATAL", "EXITED", "STOPPED", "UNKNOWN"}
HEAD = """[supervisord]
logfile={logs}/supervisord.log
pidfile={run}/supervisord.pid
childlogdir={logs}
[unix_http_server]
file={socket}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
SECTION = """[program:{name}]
command={command}
environment={environment}
autorestart=true
startsecs=2
startretries=5
stopasgroup=true
stopwaitsecs=8
redirect_stderr=true
stdout_logfile={logs}/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=2
"""


@dataclass(frozen=True)
class Program:
    """One supervised process; `ready` answers None, or what it still waits for."""

    name: str
    command: list[str]
    ready: Callable[[], str | None]
    environment: Mapping[str, str] = field(default_factory=dict)


def render(settings: Settings, programs: list[Program]) -> str:
    """Return supervisord's configuration."""
    run, logs = settings.home / "run", _escaped(settings.home / "logs")
    address = _escaped(socket_path(settings, SUPERVISOR))
    text = HEAD.format(run=_escaped(run), logs=logs, socket=address)
    for program in programs:
        pairs = [_quoted(name, value) for name, value in sorted(program.environment.items())]
        text += SECTION.format(
            name=program.name,
            command=_escaped(shlex.join(program.command)),
            environment=",".join(pairs),
            logs=logs,
        )
    return text


def _escaped(value: object) -> str:
    return str(value).replace("%", "%%")


def _quoted(name: str, value: str) -> str:
    if any(bad in value for bad in ('"', " ;", " #", "\n")):  # the file's format has no way
        bad = "a quote, a line break, ' ;' or ' #' cannot be passed on"
        raise StackError(f"{name}: {bad}: {value!r}")
    return f'{name}="{_escaped(value)}"'


def start(settings: Settings, text: str) -> None:
    """Start supervisord with configuration `text`; it holds secrets, so only its owner reads it."""
    run = settings.home / "run"
    conf, pid = run / "supervisord.conf", run / "supervisord.pid"
    conf.touch(mode=0o600)
    conf.write_text(text)
    environment = process_environment(settings) | {MARK: str(settings.home)}
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(conf)]
    with (settings.home / "logs" / "supervisord.out").open("w") as out:  # it detaches itself
        done = subprocess.run(
            command, env=environment, cwd=PROJECT, stdout=out, stderr=out, check=False
        )
    until = time.monotonic() + 15
    while done.returncode or not pid.exists() or states(settings) is None:
        if done.returncode or time.monotonic() > until:
            raise StackError(f"supervisord did not start:\n{last_lines(settings, 'supervisord')}")
        time.sleep(0.1)


def states(settings: Settings) -> dict[str, dict[str, Any]] | None:
    """Return supervisord's word on each process, by name; None where no supervisor answers."""
    try:
        with _supervisor(settings) as asked:
            rows: Any = asked.supervisor.getAllProcessInfo()
    except (OSError, Error):
        return None
    return {row["name"]: row for row in rows}


def restart(settings: Settings, readers: Collection[str], changed: float) -> list[str]:
    """Start again what the supervisor gave up on, and those of `readers` that run since before.

    changed: seconds since 1970, when what they read at their start was changed. Returns the names.
    """
    now = states(settings) or {}
    fallen = [name for name, state in now.items() if state["statename"] in FALLEN]
    running = [name for name in readers if now[name]["statename"] == "RUNNING"]
    old = [name for name in running if now[name]["start"] < changed]
    with _supervisor(settings) as asked:
        for name in old:
            asked.supervisor.stopProcess(name)
        for name in (*fallen, *old):
            asked.supervisor.startProcess(name, False)  # noqa: FBT003  (do not wait for it)
    return [*fallen, *old]


def _supervisor(settings: Settings) -> ServerProxy:
    """Return the supervisor's own client; an OSError at a call says that none listens."""
    address = f"unix://{socket_path(settings, SUPERVISOR)}"
    transport = SupervisorTransport(serverurl=address)
    return ServerProxy("http://supervisor", transport)


def wait_ready(
    settings: Settings, programs: list[Program], say: Callable[[str], None], limit: float = 120
) -> None:
    """Wait until every program answers, saying when each does.

    Raises:
        StackError: names the process, what it waited for, and the last lines of its log.

    """
    began, waiting = time.monotonic(), list(programs)
    while waiting:
        now = states(settings) or {}
        for program in list(waiting):
            state = now.get(program.name, {}).get("statename", "not supervised")
            problem = program.ready() if state == "RUNNING" else state.lower()
            if problem is None:
                waiting.remove(program)
                say(f"  {program.name}: ready in {time.monotonic() - began:.1f} s")
            elif state == "FATAL" or time.monotonic() - began > limit:
                log = f"{settings.home}/logs/{program.name}.log"
                tail = last_lines(settings, program.name)
                raise StackError(f"{program.name} is not ready ({problem}); {log}:\n{tail}")
        time.sleep(0.25)


def last_lines(settings: Settings, name: str) -> str:
    """Return the end of a process's log; supervisord has one from before it detached, too."""
    paths = [settings.home / "logs" / f"{name}.{suffix}" for suffix in ("log", "out")]
    lines = [x for p in paths if p.exists() for x in p.read_text(errors="replace").splitlines()]
    return "\n".join(f"    {line}" for line in lines[-20:])
