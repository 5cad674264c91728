"""The stack's processes under supervisord: started, restarted when they die, ended together."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xmlrpc.client import Error, ServerProxy

import psutil
from supervisor.xmlrpc import SupervisorTransport

from core.errors import StackError
from core.settings import CLONE, Settings
from stack.environment import MARK, process_environment

FALLEN = {"FATAL", "EXITED", "STOPPED", "UNKNOWN"}
STOP_SECONDS = 20.0
"""What the supervisor is given to stop its children, which it kills after 8 s."""
SILENCE_SECONDS = 300.0
"""A program that is not ready, and whose log has not grown for so long, counts as hung."""
NOTICE_SECONDS = 10.0
MOST_STARTS = 6
"""A program that has to be started more often does not get ready: supervisord's `startretries`."""
SUPERVISOR_SECONDS = 150.0
"""What the supervisor itself may take until it answers."""
LONGEST_SOCKET = 100
"""Linux allows an address of 107 bytes, and supervisord adds a suffix for a moment."""
HEAD = """[supervisord]
logfile={logs}/supervisord.log
pidfile={pid}
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
    logs = _escaped(settings.home / "logs")
    socket = _escaped(socket_path(settings))
    # `gyre up` compares the text: with another project all start again.
    text = f"; project: {settings.project}\n"
    text += HEAD.format(pid=_escaped(_pid_file(settings)), logs=logs, socket=socket)
    for program in programs:
        pairs = [
            _quoted(name, value) for name, value in sorted(program.environment.items())
        ]
        command, environment = _escaped(shlex.join(program.command)), ",".join(pairs)
        text += SECTION.format(
            name=program.name, command=command, environment=environment, logs=logs
        )
    return text


def _escaped(value: object) -> str:
    return str(value).replace("%", "%%")


def _quoted(name: str, value: str) -> str:
    # The file's format has no way.
    if any(bad in value for bad in ('"', " ;", " #", "\n")):
        bad = "a quote, a line break, ' ;' or ' #' cannot be passed on"
        raise StackError(f"{name}: {bad}: {value!r}")
    return f'{name}="{_escaped(value)}"'


def socket_path(settings: Settings) -> Path:
    """Where supervisord listens; elsewhere if the home's name is too long for an address."""
    path = settings.home / "run" / "supervisord.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        return path
    short = f"gyre-{os.getuid()}-{zlib.crc32(os.fsencode(path)):08x}.sock"
    return Path(tempfile.gettempdir()) / short


def _pid_file(settings: Settings) -> Path:
    return settings.home / "run" / "supervisord.pid"


def start(settings: Settings, text: str) -> None:
    """Start supervisord with configuration `text`; it holds secrets, so only its owner reads it."""
    file = settings.home / "run" / "supervisord.conf"
    file.touch(mode=0o600)
    file.write_text(text)
    environment = process_environment(settings) | {MARK: str(settings.home)}
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(file)]
    with (settings.home / "logs" / "supervisord.out").open(
        "w"
    ) as out:  # it detaches itself
        done = subprocess.run(
            command, env=environment, cwd=CLONE, stdout=out, stderr=out, check=False
        )
    until = time.monotonic() + SUPERVISOR_SECONDS
    while (
        done.returncode or not _pid_file(settings).exists() or states(settings) is None
    ):
        if done.returncode or time.monotonic() > until:
            raise StackError(
                f"supervisord did not start:\n{last_lines(settings, 'supervisord')}"
            )
        time.sleep(0.1)


def states(settings: Settings) -> dict[str, dict[str, Any]] | None:
    """Return supervisord's row of each process, by name; None where no supervisor answers."""
    try:
        with _supervisor(settings) as server:
            rows: Any = server.supervisor.getAllProcessInfo()
    except (OSError, Error):
        return None
    return {row["name"]: row for row in rows}


def usage(settings: Settings) -> dict[str, tuple[float, int]]:
    """Return CPU seconds and bytes of memory by program, of all its processes.

    CPU of ended ones too; memory is the proportional set size: what they share counts once.
    """
    used = dict[str, tuple[float, int]]()
    for name, row in (states(settings) or {}).items():
        with suppress(psutil.NoSuchProcess):
            program, seconds, held = psutil.Process(row["pid"]), 0.0, 0
            for process in (program, *program.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # ended meanwhile
                    seconds += sum(process.cpu_times()[:4])
                    held += process.memory_full_info().pss
            used[name] = seconds, held
    return used


def restart(settings: Settings, readers: Collection[str], changed: float) -> list[str]:
    """Start again what has fallen, and those of `readers` that run since before `changed`.

    changed: seconds since 1970. Returns the names of what was started.
    """
    now = states(settings) or {}
    fallen = [name for name, row in now.items() if row["statename"] in FALLEN]
    running = [name for name in readers if now[name]["statename"] == "RUNNING"]
    old = [name for name in running if now[name]["start"] < changed]
    with _supervisor(settings) as server:
        for name in old:
            server.supervisor.stopProcess(name)
        for name in (*fallen, *old):
            server.supervisor.startProcess(name, False)  # noqa: FBT003  (do not wait for it)
    return [*fallen, *old]


def _supervisor(settings: Settings) -> ServerProxy:
    transport = SupervisorTransport(serverurl=f"unix://{socket_path(settings)}")
    return ServerProxy("http://supervisor", transport)


def wait_ready(
    settings: Settings,
    programs: list[Program],
    say: Callable[[str], None],
    silence: float = SILENCE_SECONDS,
    notice: float = NOTICE_SECONDS,
) -> None:
    """Wait until every program answers, however long: as long as it lives and its log grows.

    Args:
        settings: Of the stack; its supervisor has started the programs.
        programs: Those to wait for.
        say: Takes a line for each program that is ready, and for what is still waited for.
        silence: Seconds without a new line in its log, after which a program counts as hung.
        notice: Seconds between two lines about what is still waited for.

    Raises:
        StackError: A program ended too often, or hangs. Names what it waited for, and the last
            lines of its log.

    """
    began = time.monotonic()
    next_notice = began + notice
    startups = {
        program.name: Startup(_log_file(settings, program.name)) for program in programs
    }
    waiting = list(programs)
    while waiting:
        rows = states(settings) or {}
        problems = dict[str, str]()
        for program in waiting:
            row = rows.get(program.name, {"statename": "NOT SUPERVISED", "pid": 0})
            state = row["statename"]
            problem = program.ready() if state == "RUNNING" else state.lower()
            if problem is None:
                say(f"  {program.name}: ready in {time.monotonic() - began:.1f} s")
                continue
            problems[program.name] = problem
            failure = startups[program.name].failure(state, row["pid"], silence)
            if failure:
                log = _log_file(settings, program.name)
                tail = last_lines(settings, program.name)
                raise StackError(
                    f"{program.name} is not ready ({problem}): {failure}; {log}:\n{tail}"
                )
        waiting = [program for program in waiting if program.name in problems]
        if waiting and time.monotonic() >= next_notice:
            next_notice += notice
            reasons = "; ".join(
                f"{name} ({problem})" for name, problem in problems.items()
            )
            say(f"  waiting for {reasons}, {time.monotonic() - began:.0f} s")
        time.sleep(0.25)


@dataclass
class Startup:
    """Signs of life of a program that is not ready yet."""

    log: Path
    pids: set[int] = field(default_factory=set)
    log_size: int = -1
    moved: float = 0.0
    """When its log grew last, in monotonic seconds."""

    def failure(self, state: str, pid: int, silence: float) -> str | None:
        """Return why there is no use in waiting on, None while there is."""
        self.pids |= {pid} - {0}
        log_size = self.log.stat().st_size if self.log.exists() else 0
        if log_size != self.log_size:
            self.log_size = log_size
            self.moved = time.monotonic()
        if state == "FATAL" or len(self.pids) > MOST_STARTS:
            return "it ends each time it is started"
        if time.monotonic() - self.moved > silence:
            return f"its log has had no new line for {silence:.0f} s"
        return None


def _log_file(settings: Settings, name: str) -> Path:
    return settings.home / "logs" / f"{name}.log"


def last_lines(settings: Settings, name: str) -> str:
    """Return the end of a process's log; supervisord's `.out` is from before it detached."""
    paths = [settings.home / "logs" / f"{name}.{suffix}" for suffix in ("log", "out")]
    lines = [
        x
        for p in paths
        if p.exists()
        for x in p.read_text(errors="replace").splitlines()
    ]
    return "\n".join(f"    {line}" for line in lines[-20:])


def end_stack(settings: Settings) -> list[str]:
    """End the stack of `settings.home`, and nothing else; one line for each process that ended."""
    file = _pid_file(settings)
    supervisor = file.read_text().strip() if file.exists() else ""
    found = members(settings.home)
    end([process for process in found if str(process.pid) == supervisor], STOP_SECONDS)
    end(members(settings.home), 3.0)
    file.unlink(missing_ok=True)
    left = members(settings.home)
    return [
        f"{process.pid} {title(process)[:90]}"
        for process in found
        if process not in left
    ]


def end(processes: list[psutil.Process], patience: float) -> None:
    """Ask them to stop; kill those that have not after `patience` seconds."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=patience)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)


def members(home: Path) -> list[psutil.Process]:
    """Return the living processes of this home's stack, never this one or those above it.

    Their `info` has `name` and `cmdline`.
    """
    above = [psutil.Process(), *psutil.Process().parents()]
    # None: gone, or somebody else's.
    found = psutil.process_iter(["name", "cmdline", "environ"])
    ours = [p for p in found if (p.info["environ"] or {}).get(MARK) == str(home)]
    return [process for process in ours if process not in above]


def title(process: psutil.Process) -> str:
    """Return the command of one of the `members`."""
    return " ".join(process.info["cmdline"] or [])
