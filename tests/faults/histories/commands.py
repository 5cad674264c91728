"""Commands of `gyre`, each a process of its own, forked of one that has imported them.

    python -m tests.faults.histories.commands

reads a line of JSON for each command, [arguments, file of its output, seconds by which its clock is
ahead], and answers with the number of the process. At its end a command writes its exit code beside
its output; one that was killed writes none.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path

import psutil

LIBRARIES = """
cli.data cli.main feature_engine.events.broker feature_engine.ingest.consumer
feature_engine.ingest.pipeline feature_engine.ingest.quarantine operations.forget
"""
PACKAGES = {"cli", "core", "feature_engine", "feature_repo", "operations"}
END_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""


class Command:
    """A command that has begun.

    Attributes:
        process: Its process.
        output: File of what it prints.

    """

    def __init__(self, pid, output):
        self.process = psutil.Process(pid)
        self.output = output

    @property
    def is_alive(self):
        with suppress(psutil.NoSuchProcess):
            return self.process.status() != psutil.STATUS_ZOMBIE
        return False

    @property
    def code(self):
        """Its exit code; None while it runs, or if it was killed."""
        file = self.output.with_suffix(".code")
        return int(file.read_text()) if file.exists() else None

    @property
    def text(self):
        return self.output.read_text(errors="replace")

    def wait(self, seconds=300.0):
        """Return its exit code; None if it was killed.

        Raises:
            TimeoutError: It goes on for longer.

        """
        end = time.monotonic() + seconds
        while self.is_alive:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.output.name}: not ended after {seconds} s")
            time.sleep(0.01)
        return self.code

    def kill(self):
        """Kill it; return whether it was alive."""
        was_alive = self.is_alive
        if was_alive:
            self.process.kill()
            self.wait()
        return was_alive and self.code is None


def clock_ahead_by(seconds):
    """Return a class in the place of `datetime` whose clock differs."""

    class AnyTime(type):
        def __instancecheck__(cls, value):
            return isinstance(value, datetime)

    class Clock(datetime, metaclass=AnyTime):
        def __new__(cls, *values, **named_values):
            return datetime(*values, **named_values)  # noqa: DTZ001  (as it was called)

        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(seconds=seconds)

    return Clock


def set_clock(seconds):
    """Have every module of Gyre in this process read another clock."""
    clock = clock_ahead_by(seconds)
    for name, module in [*sys.modules.items()]:
        is_own = name.partition(".")[0] in PACKAGES
        if is_own and getattr(module, "datetime", None) is datetime:
            module.datetime = clock


def become(arguments, output, seconds):
    """Be a command in this process, to its end."""
    ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((nothing, file, file)):
        os.dup2(source, target)
    if seconds:
        set_clock(seconds)
    sys.argv = ["gyre", *arguments]
    code = 0
    try:
        import_module("cli.main").app()
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException:  # noqa: BLE001  (as the interpreter does)
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    part = Path(output).with_suffix(".part")
    part.write_text(str(code))
    part.rename(part.with_suffix(".code"))
    os._exit(code)


def serve():
    for library in LIBRARIES.split():
        import_module(library)
    from feature_repo.datasets import load_datasets  # noqa: PLC0415

    load_datasets()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            become(*json.loads(line))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
