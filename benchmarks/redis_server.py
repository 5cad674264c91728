"""A Redis as the stack runs it, but for its append-only file, on any free core."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path


def start_redis(opened: ExitStack, folder: Path) -> int:
    """Return its port."""
    from tests.conftest import BIN, unused_port  # noqa: PLC0415  (not in what is measured)

    port = unused_port()
    command = [str(BIN / "redis-server"), "--port", str(port), "--dir", str(folder), "--save", ""]
    process = subprocess.Popen([*command, "--loglevel", "warning"], stdout=subprocess.DEVNULL)
    opened.callback(process.wait, 10)
    opened.callback(process.kill)
    Redis(port=port, retry=Retry(ConstantBackoff(0.1), 100)).ping()
    return port
