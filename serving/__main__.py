"""`python -m serving`: runs the workers until SIGTERM."""

import os
import sys
from functools import partial
from importlib import import_module
from tempfile import TemporaryDirectory

import uvicorn
from uvicorn.supervisors import Multiprocess

from core.errors import GyreError
from core.settings import Settings, load_settings
from core.tokens import serving_headers
from serving.http.http1 import Http1Protocol
from serving.program_log import log_to_stdout
from serving.worker import worker


def serve(settings: Settings) -> None:
    """Answer until SIGTERM; where the port is taken, exit with uvicorn's code 3."""
    serving_headers(settings)  # a SettingsError where there is no token to compare with
    if settings.predictions_topic:
        import_module("core.connectors.kafka")  # where its client is missing, likewise
    log_to_stdout()
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
    # Not below GYRE_HOME: a process that counts in a mapped file is killed when its disk is full.
    with (
        config.bind_socket() as listening,
        TemporaryDirectory(
            prefix="gyre-metrics-", ignore_cleanup_errors=True
        ) as counts,
    ):
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts
        Multiprocess(config, [listening]).run()


if __name__ == "__main__":
    try:
        serve(load_settings())
    except GyreError as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(exc.exit_code)
