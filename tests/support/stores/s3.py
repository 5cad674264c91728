"""A server that answers as S3 does, on loopback: moto's."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from tests.conftest import answers, running, unused_port, wait_until

BUCKET = "gyre"


def variables(port: int, host: str = "127.0.0.1") -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "gyre",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_TIMEOUT": "2s",  # of a request, and there are four tries
    }


@contextmanager
def s3_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch, host: str = "127.0.0.1"
) -> Iterator[subprocess.Popen[bytes]]:
    """Have a bucket `gyre`, which this process and those that it starts reach."""
    port = unused_port()
    for name, value in variables(port, host).items():
        monkeypatch.setenv(name, value)
    program = str(Path(sys.executable).with_name("moto_server"))
    command = [program, "--host", host, "--port", str(port)]
    with running(command, folder / "s3.log") as process:
        wait_until("S3", lambda: answers(f"http://{host}:{port}/moto-api/"))
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield process
