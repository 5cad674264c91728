"""`python -m serving`: runs the workers until SIGTERM."""

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import uvicorn
from uvicorn.supervisors import Multiprocess

from core.access.private_home import make_home
from core.errors import GyreError
from core.settings import Settings, load_settings
from core.tokens import serving_headers
from serving.http.http1 import Http1Protocol
from serving.program_log import log_to_stdout
from serving.worker import worker

COUNTS = "gyre-metrics-"
"""Beginning of the name of a folder of counts."""
NEW_SECONDS = 5
"""Age below which a folder may belong to a server that has not locked it yet."""


def serve(settings: Settings) -> None:
    """Answer until SIGTERM; where the port is taken, exit with uvicorn's code 3."""
    serving_headers(settings)  # a SettingsError where there is no token to compare with
    if settings.predictions_topic:
        import_module("core.connectors.kafka")  # where its client is missing, likewise
    log_to_stdout()
    make_home(settings)
    # By default each thread that has parsed a large body keeps memory of its own.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    config = uvicorn.Config(
        partial(worker, settings),
        factory=True,
        host=settings.host,
        port=settings.serving_port,
        workers=settings.serving_workers,
        http=Http1Protocol,
        ws="none",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=5,
    )
    with config.bind_socket() as listening, counts_folder() as counts:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts
        Multiprocess(config, [listening]).run()


@contextmanager
def counts_folder() -> Iterator[str]:
    """Make the folder in which workers count, and remove those of servers that were killed.

    It is not below GYRE_HOME: a process that counts in a mapped file is killed when its disk is full.
    """
    for old in Path(gettempdir()).glob(f"{COUNTS}*"):
        # A server locks its folder until it ends. Those of other users are theirs.
        if is_closed_folder(old):
            shutil.rmtree(old, ignore_errors=True)
    with TemporaryDirectory(prefix=COUNTS, ignore_cleanup_errors=True) as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(descriptor)


def is_closed_folder(folder: Path) -> bool:
    """Whether a folder of this user belongs to no server that runs."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        is_own = os.fstat(descriptor).st_uid == os.geteuid()
        is_new = time.time() - os.fstat(descriptor).st_ctime < NEW_SECONDS
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return is_own and not is_new


if __name__ == "__main__":
    try:
        serve(load_settings())
    except GyreError as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(exc.exit_code)
