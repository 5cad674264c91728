"""A server that answers as S3 does, on loopback: moto's."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import boto3

from tests.conftest import answers, running, unused_port, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    import pytest

BUCKET = "gyre"


def variables(port: int) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "gyre",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_TIMEOUT": "2s",  # of a request, and there are four tries
    }


@contextmanager
def s3_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    """Have a bucket `gyre`, which this process and those that it starts reach."""
    port = unused_port()
    for name, value in variables(port).items():
        monkeypatch.setenv(name, value)
    command = [str(Path(sys.executable).with_name("moto_server")), "--port", str(port)]
    with running(command, folder / "s3.log") as process:
        wait_until("S3", lambda: answers(f"http://127.0.0.1:{port}/moto-api/"))
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield process
