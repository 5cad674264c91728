"""`python -m serving`: the workers on the loopback address, until SIGTERM."""

import os
import sys
from functools import partial
from tempfile import TemporaryDirectory

import uvicorn
from uvicorn.supervisors import Multiprocess

from serving.json_logs import log_to_stdout
from serving.worker import worker
from stack.errors import GyreError
from stack.settings import LOOPBACK, Settings, load_settings

KEEP_ALIVE_SECONDS = 60
SHUTDOWN_SECONDS = 5


def serve(settings: Settings) -> None:
    """Answer until SIGTERM; where the port is taken, exit with uvicorn's code 3."""
    log_to_stdout()
    config = uvicorn.Config(
        partial(worker, settings),
        factory=True,
        host=LOOPBACK,
        port=settings.serving_port,
        workers=settings.serving_workers,
        ws="none",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    # Workers count in a folder of their own, from nothing. Not below GYRE_HOME: a process that
    # counts in a mapped file is killed where the disk is full.
    with (
        config.bind_socket() as listening,
        TemporaryDirectory(prefix="gyre-metrics-", ignore_cleanup_errors=True) as counts,
    ):
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts
        Multiprocess(config, [listening]).run()


if __name__ == "__main__":
    try:
        serve(load_settings())
    except GyreError as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(exc.exit_code)
