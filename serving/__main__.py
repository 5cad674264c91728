"""`python -m serving`: the workers on the loopback address, until SIGTERM."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.supervisors import Multiprocess

from serving.json_logs import log_to_stdout
from serving.worker import worker
from stack.errors import GyreError, StackError
from stack.settings import LOOPBACK, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stack.settings import Settings

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 60
SHUTDOWN_SECONDS = 5
METRICS = "PROMETHEUS_MULTIPROC_DIR"
logger = logging.getLogger("serving")


def main() -> int:
    try:
        return serve(load_settings())
    except GyreError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code


def serve(settings: Settings) -> int:
    """Answer until SIGTERM.

    Raises:
        StackError: the port is taken; nothing was started.

    """
    with listen(settings) as listening, metrics_folder():
        log_to_stdout()
        config = uvicorn.Config(
            partial(worker, settings, os.getpid()),
            factory=True,
            workers=settings.serving_workers,
            loop="uvloop",
            http="httptools",
            ws="none",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        Multiprocess(config, [listening]).run()
    return 0


def listen(settings: Settings) -> socket.socket:
    """Open the port once for all workers: while one is started again, requests wait in it."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, settings.serving_port))
    except OSError as exc:
        listening.close()
        raise StackError(f"port {settings.serving_port}: {exc.strerror}") from exc
    listening.set_inheritable(True)
    return listening


@contextmanager
def metrics_folder() -> Iterator[None]:
    """Have the workers count in a folder of their own, from nothing.

    Not below GYRE_HOME: a process that counts in a mapped file is killed where the disk is full.
    """
    folder = tempfile.mkdtemp(prefix="gyre-metrics-")
    os.environ[METRICS] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
