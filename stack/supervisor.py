"""The stack's processes under supervisord: started, restarted when they die, ended together."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xmlrpc.client import Error, ServerProxy

import psutil
from supervisor.xmlrpc import SupervisorTransport

from core.errors import StackError
from core.project import CLONE
from core.settings import Settings
from stack.environment import MARK, SOCKET

FALLEN = {"FATAL", "EXITED", "STOPPED", "UNKNOWN"}
"""States in which supervisord does not run a program."""
STOP_SECONDS = 20.0
"""Time for the supervisor to stop its children, which it kills after 8 s."""
READY_SECONDS = 600.0
"""Time for all programs to get ready, on a machine that is busy with other work."""
NOTICE_SECONDS = 10.0
"""Time between two lines about programs that are not ready."""
MOST_STARTS = 6
"""Starts after which a program counts as broken: supervisord's `startretries`, and the first."""
SUPERVISOR_SECONDS = 150.0
"""Time for supervisord to answer."""
SOCKET_FOLDER = "supervisord.folder"
"""Link in the home to the folder of a socket outside it."""
OF_OTHERS = 0o077
"""Rights of a group and of others."""
LONGEST_SOCKET = 100
"""Bytes of a socket's path: Linux allows 107, and supervisord adds a suffix for a moment."""
HEAD = """[supervisord]
logfile=%(ENV_GYRE_STACK)s/logs/supervisord.log
pidfile=%(ENV_GYRE_STACK)s/run/supervisord.pid
childlogdir=%(ENV_GYRE_STACK)s/logs
[unix_http_server]
file=%(ENV_GYRE_STACK_SOCKET)s
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
SECTION = """[program:{name}]
command={command}
autostart=false
autorestart=true
startsecs=2
startretries=5
stopasgroup=true
stopwaitsecs=8
redirect_stderr=true
stdout_logfile=%(ENV_GYRE_STACK)s/logs/%(program_name)s.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=2
"""
"""A program's section. A program inherits the environment of supervisord."""


@dataclass(frozen=True)
class Program:
    """A supervised process.

    Attributes:
        name: Name of its section, its log and its line in `gyre status`.
        command: Command for supervisord, in which `%(ENV_NAME)s` is an environment variable.
        problem: Returns None once the program is ready, else the reason why it is not.
        part: Part of the stack. Where the setting `PART_url` is given, the program is not started.
        reads_project: Whether the program reads models/ when it starts.
        is_elsewhere: Whether the program is started only where `PART_url` is given.

    """

    name: str
    command: str
    problem: Callable[[Settings], str | None]
    part: str = ""
    reads_project: bool = False
    is_elsewhere: bool = False


def configuration(programs: Iterable[Program]) -> str:
    """Return supervisord's configuration, which is the same for every stack."""
    sections = [
        SECTION.format(name=program.name, command=program.command)
        for program in programs
    ]
    return HEAD + "".join(sections)


def socket_path(home: Path) -> Path:
    """Return supervisord's socket; it is outside the home if that path is too long for a socket.

    It is then in a folder of its own that `make_socket_folder` makes, and nobody answers before.
    """
    path = home / "run" / "supervisord.sock"
    folder = _socket_folder(home)
    return path if folder is None else folder / path.name


def make_socket_folder(home: Path) -> None:
    """Make the folder of a socket whose path in the home would be too long.

    Its name is random: another user could take a name that can be guessed first.
    """
    path = home / "run" / "supervisord.sock"
    is_short = len(os.fsencode(path)) <= LONGEST_SOCKET
    if is_short or _socket_folder(home) is not None:
        return
    link = home / "run" / SOCKET_FOLDER
    link.unlink(missing_ok=True)
    link.symlink_to(tempfile.mkdtemp(prefix="gyre-"))


def _socket_folder(home: Path) -> Path | None:
    """Return the folder that `make_socket_folder` made; None: none, or another user's by now."""
    try:
        folder = (home / "run" / SOCKET_FOLDER).readlink()
        state = folder.lstat()
    except OSError:
        return None
    is_private = stat.S_ISDIR(state.st_mode) and not state.st_mode & OF_OTHERS
    return folder if is_private and state.st_uid == os.geteuid() else None


def _remove_socket_folder(home: Path) -> None:
    """Remove what `make_socket_folder` made."""
    folder = _socket_folder(home)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    (home / "run" / SOCKET_FOLDER).unlink(missing_ok=True)


def start_supervisor(
    settings: Settings, programs: Iterable[Program], environment: Mapping[str, str]
) -> None:
    """Start supervisord, which starts no program yet; programs will inherit `environment`.

    Raises:
        StackError: It does not answer. The message has the end of its log.

    """
    home = settings.home
    file = home / "run" / "supervisord.conf"
    file.write_text(configuration(programs))
    make_socket_folder(home)
    marks = {MARK: str(home), SOCKET: str(socket_path(home))}
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(file)]
    # It detaches itself.
    with (home / "logs" / "supervisord.out").open("w") as out:
        result = subprocess.run(
            command,
            env={**environment, **marks},
            cwd=CLONE,
            stdout=out,
            stderr=out,
            check=False,
        )
    deadline = time.monotonic() + SUPERVISOR_SECONDS
    while result.returncode or not _pid_file(home).exists() or states(settings) is None:
        if result.returncode or time.monotonic() > deadline:
            lines = last_lines(settings, "supervisord")
            raise StackError(f"supervisord did not start:\n{lines}")
        time.sleep(0.1)


def start(settings: Settings, programs: Iterable[Program]) -> None:
    """Start the programs that do not run."""
    rows = states(settings) or {}
    with _supervisor(settings) as server:
        for program in programs:
            if rows[program.name]["statename"] in FALLEN:
                server.supervisor.startProcess(program.name, False)  # noqa: FBT003  (do not wait)


def stop_older(settings: Settings, programs: Iterable[Program], changed: float) -> None:
    """Stop the programs that were started before `changed`, in seconds since 1970."""
    rows = states(settings) or {}
    with _supervisor(settings) as server:
        for program in programs:
            row = rows[program.name]
            if row["statename"] == "RUNNING" and row["start"] < changed:
                server.supervisor.stopProcess(program.name)


class Usage(NamedTuple):
    """Processor time and memory of a program.

    Attributes:
        cpu_seconds: Time of its processes, ended ones too.
        memory_bytes: Proportional set size: memory that its processes share counts once.

    """

    cpu_seconds: float
    memory_bytes: int


def states(settings: Settings) -> dict[str, dict[str, Any]] | None:
    """Return supervisord's row of each process, by name; None where no supervisor answers."""
    try:
        with _supervisor(settings) as server:
            rows: Any = server.supervisor.getAllProcessInfo()
    except (OSError, Error):
        return None
    return {row["name"]: row for row in rows}


def _supervisor(settings: Settings) -> ServerProxy:
    transport = SupervisorTransport(serverurl=f"unix://{socket_path(settings.home)}")
    return ServerProxy("http://supervisor", transport)


def usage(settings: Settings) -> dict[str, Usage]:
    """Return processor time and memory of each program; empty where no supervisor answers."""
    usages: dict[str, Usage] = {}
    for name, row in (states(settings) or {}).items():
        if not row["pid"]:  # it has ended
            continue
        seconds = 0.0
        memory = 0
        with suppress(psutil.Error):
            program = psutil.Process(row["pid"])
            for process in (program, *program.children(recursive=True)):
                with suppress(psutil.Error):  # ended meanwhile
                    times = process.cpu_times()
                    seconds += times.user + times.system
                    seconds += times.children_user + times.children_system
                    memory += process.memory_full_info().pss
            usages[name] = Usage(seconds, memory)
    return usages


def wait_ready(
    settings: Settings,
    programs: Iterable[Program],
    say: Callable[[str], None],
) -> None:
    """Wait until every program is ready.

    Args:
        settings: Settings of the stack, whose supervisor has started the programs.
        programs: Programs to wait for.
        say: Takes a line for each program that is ready, and lines on programs that are not.

    Raises:
        StackError: A program ends each time it is started, or is not ready in time. The message
            has the reason, how long the wait was, and the end of the program's log.

    """
    began = time.monotonic()
    next_notice = began + NOTICE_SECONDS
    waiting = list(programs)
    pids: dict[str, set[int]] = {program.name: set() for program in waiting}
    while waiting:
        rows = states(settings) or {}
        problems = {}
        for program in waiting:
            row = rows.get(program.name, {"statename": "NOT SUPERVISED", "pid": 0})
            state = row["statename"]
            problem = program.problem(settings) if state == "RUNNING" else state.lower()
            waited = time.monotonic() - began
            if problem is None:
                say(f"  {program.name}: ready in {waited:.1f} s")
                continue
            problems[program.name] = problem
            pids[program.name].add(row["pid"])
            if state == "FATAL" or len(pids[program.name]) > MOST_STARTS:
                raise _not_ready(settings, program, problem, "it ends each time")
            if waited > READY_SECONDS:
                raise _not_ready(
                    settings,
                    program,
                    problem,
                    f"after {waited:.0f} s; to wait longer: gyre up",
                )
        waiting = [program for program in waiting if program.name in problems]
        if waiting and time.monotonic() >= next_notice:
            next_notice += NOTICE_SECONDS
            waited = time.monotonic() - began
            say(f"  waiting for {', '.join(problems)}, {waited:.0f} s")
        time.sleep(0.25)


def _not_ready(
    settings: Settings, program: Program, problem: str, reason: str
) -> StackError:
    log = settings.home / "logs" / f"{program.name}.log"
    lines = last_lines(settings, program.name)
    return StackError(
        f"{program.name} is not ready ({problem}), {reason}; {log}:\n{lines}"
    )


def last_lines(settings: Settings, name: str) -> str:
    """Return the end of a program's log; supervisord writes to `.out` until it has detached."""
    lines = []
    for suffix in ("log", "out"):
        path = settings.home / "logs" / f"{name}.{suffix}"
        if path.exists():
            lines += path.read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-20:])


def end_stack(settings: Settings) -> list[str]:
    """End the stack of `settings.home` alone; return a line for each process that ended."""
    home = settings.home
    file = _pid_file(home)
    supervisor = file.read_text().strip() if file.exists() else ""
    before = members(home)
    end([process for process in before if str(process.pid) == supervisor], STOP_SECONDS)
    end(members(home), 3.0)
    file.unlink(missing_ok=True)
    _remove_socket_folder(home)
    after = members(home)
    return [
        f"{process.pid} {title(process)[:90]}"
        for process in before
        if process not in after
    ]


def _pid_file(home: Path) -> Path:
    return home / "run" / "supervisord.pid"


def end(processes: list[psutil.Process], patience: float) -> None:
    """Send processes SIGTERM; kill those that live after `patience` seconds."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=patience)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)


def members(home: Path) -> list[psutil.Process]:
    """Return the living processes of a home's stack, but this process and its ancestors."""
    above = [psutil.Process(), *psutil.Process().parents()]
    processes = psutil.process_iter(["name", "cmdline", "environ"])
    marked_processes = [
        process
        for process in processes
        # None: it is gone, or another user's.
        if (process.info["environ"] or {}).get(MARK) == str(home)
    ]
    return [process for process in marked_processes if process not in above]


def title(process: psutil.Process) -> str:
    """Return the command of a process that `members` returned."""
    return " ".join(process.info["cmdline"] or [])
