"""`python -m serving`: the workers on the loopback address and their keeper, until SIGTERM."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.supervisors import Multiprocess

from serving.announcement import forget_another_home, in_memory, written_down
from serving.json_logs import log_to_stdout
from serving.worker import worker
from stack.errors import GyreError, SettingsError, StackError
from stack.settings import LOOPBACK, Settings, load_settings
from stack.sockets import keeper_socket
from stack.spec import ModelSpec, broken_specs, load_specs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BACKLOG, KEEPER_SECONDS, NICE = 2048, 5, 5
METRICS = "PROMETHEUS_MULTIPROC_DIR"
logger = logging.getLogger("serving")


def main() -> int:
    try:
        return serve(load_settings(), load_specs())
    except GyreError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code


def serve(settings: Settings, specs: Sequence[ModelSpec]) -> int:
    """Answer until SIGTERM, every worker by these specs, whenever it was started.

    Raises:
        SettingsError, StackError: nothing was started.

    """
    if not specs:
        raise SettingsError("; ".join(broken_specs()) or "models/ has no spec: add one")
    with alone(settings), listen(settings) as listening, memory(settings):
        log_to_stdout()
        for problem in broken_specs():
            logger.error("a model is not served: %s", problem)
        config = uvicorn.Config(
            partial(worker, settings, specs, os.getpid()), factory=True,
            workers=settings.serving_workers, loop="uvloop", http="httptools", ws="none",
            access_log=False, log_config=None, proxy_headers=False, server_header=False,
            timeout_graceful_shutdown=5, backlog=BACKLOG,
        )  # fmt: skip
        # Beside the workers, which answer before it has imported Feast and MLflow.
        stop = threading.Event()
        keeper = threading.Thread(target=keep, args=(settings, specs, stop), daemon=True)
        keeper.start()
        Multiprocess(config, [listening]).run()
        listening.close()
        stop.set()
        keeper.join(2)  # the supervisor's patience is 8 s
    return 0


def listen(settings: Settings) -> socket.socket:
    """Open the port once for all workers: while one is started again, requests wait in it."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((LOOPBACK, settings.serving_port))
    except OSError as exc:
        found.close()
        raise StackError(f"port {settings.serving_port}: {exc.strerror}") from exc
    found.set_inheritable(True)
    return found


def listen_beside(settings: Settings) -> socket.socket:
    """Open the socket that workers find the keeper at; no other account may connect."""
    address = keeper_socket(settings)
    address.parent.mkdir(parents=True, exist_ok=True)
    address.unlink(missing_ok=True)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        found.bind(str(address))
    except OSError:
        found.close()
        raise
    finally:
        os.umask(before)
    found.listen()
    return found


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Keep a second server out of this home: both would announce and let go local copies.

    The lock is the process's: SIGKILL releases it, and no worker inherits it.

    Raises:
        StackError: one is at work; names its process.

    """
    path = settings.home / "serving" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            first = f"{settings.home} is served by process {file.read()} already"
            raise StackError(f"{first}: end it, or set another GYRE_HOME") from None
        with suppress(OSError):  # on a full disk its number is missing, the lock is not
            path.write_text(f"{os.getpid()}")
        yield


@contextmanager
def memory(settings: Settings) -> Iterator[None]:
    """Open this home's folder in memory; have all processes count there, from nothing.

    In memory: a file that is mapped and whose disk is full kills who writes to it.

    Raises:
        StackError: the folder is another account's.

    """
    folder = in_memory(settings)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise StackError(f"{folder}: expected a folder of this account")
    forget_another_home(settings)
    counts = folder / "metrics"
    shutil.rmtree(counts, ignore_errors=True)
    counts.mkdir()
    os.environ[METRICS] = str(counts)
    yield
    shutil.rmtree(counts if not written_down(settings) else folder, ignore_errors=True)


def keep(settings: Settings, specs: Sequence[ModelSpec], stop: threading.Event) -> None:
    """Run the keeper, again where it ended: the workers answer on meanwhile."""
    # Its rounds can wait, answers cannot. Of this thread, and of those it starts: Linux.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    while not stop.is_set():
        try:
            # Before what takes seconds to import: workers wait rather than fail.
            with listen_beside(settings) as listening:
                from serving.keeper_app import run  # noqa: PLC0415  (Feast and MLflow)

                run(settings, specs, listening, stop)
        except (Exception, SystemExit):  # uvicorn's, where the application does not start
            logger.exception("the keeper ended")
        stop.wait(KEEPER_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
