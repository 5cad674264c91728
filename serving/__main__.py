"""`python -m serving`: the workers on the loopback address and their keeper, until SIGTERM."""

import logging
import os
import shutil
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

import uvicorn
from uvicorn.supervisors import Multiprocess

from serving.json_logs import log_to_stdout
from stack.errors import GyreError, SettingsError, StackError
from stack.settings import LOOPBACK, Settings, load_settings
from stack.sockets import keeper_socket
from stack.spec import ModelSpec, load_specs

BACKLOG, KEEPER_SECONDS = 2048, 5
METRICS = "PROMETHEUS_MULTIPROC_DIR"
logger = logging.getLogger("serving")


def main() -> int:
    try:
        settings = load_settings()
        check_default(settings, load_specs())
        listening = listen(settings)
    except GyreError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    log_to_stdout()
    counts = count_in_memory()
    from serving.http_connection import BoundedConnection  # noqa: PLC0415  (counts from here on)

    config = uvicorn.Config(
        "serving.app:worker", factory=True, workers=settings.serving_workers, loop="uvloop",
        http=BoundedConnection, ws="none", access_log=False, log_config=None, proxy_headers=False,
        server_header=False, timeout_graceful_shutdown=5, backlog=BACKLOG,
    )  # fmt: skip
    # Beside the workers, which answer before it has imported Feast and MLflow.
    stop = threading.Event()
    keeper = threading.Thread(target=keep, args=(settings, stop), daemon=True)
    keeper.start()
    with listening:
        Multiprocess(config, [listening]).run()
    stop.set()
    keeper.join(2)  # the supervisor's patience is 8 s
    shutil.rmtree(counts, ignore_errors=True)
    return 0


def check_default(settings: Settings, specs: Sequence[ModelSpec]) -> None:
    names = [spec.name for spec in specs]
    if settings.default_model not in names:
        raise SettingsError(f"GYRE_DEFAULT_MODEL: {settings.default_model!r} is not in {names}")


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


def count_in_memory() -> Path:
    """Have all processes count in a folder of their own, from nothing.

    In memory: a file that is mapped and whose disk is full kills who writes to it.
    """
    memory = Path("/dev/shm")  # noqa: S108  (the folder in it is ours alone)
    made = mkdtemp(prefix="gyre-metrics-", dir=memory if memory.is_dir() else None)
    os.environ[METRICS] = made
    return Path(made)


def keep(settings: Settings, stop: threading.Event) -> None:
    """Run the keeper, again where it ended: the workers answer on meanwhile."""
    while not stop.is_set():
        try:
            # Before what takes seconds to import: workers wait rather than fail.
            with listen_beside(settings) as listening:
                from serving.keeper_app import run  # noqa: PLC0415  (Feast and MLflow)

                run(settings, listening, stop)
        except (Exception, SystemExit):  # uvicorn's, where the application does not start
            logger.exception("the keeper ended")
        stop.wait(KEEPER_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
