"""The image `serving` as a team runs it: its packages, its start, its end, and what it refuses."""

import socket
import time

import httpx
import pytest

from tests.conftest import answers, at_most, wait_until
from tests.containers.conftest import container, logs
from tests.containers.replica import (
    NAME,
    TOKEN,
    Replica,
    promote_native,
    promote_read_by_feast,
)
from tests.faults.conftest import broken, shows
from tests.support.tools.images import podman, run

pytestmark = pytest.mark.containers
INSTALLED = """
import os, shutil
from importlib.util import find_spec
names = (
    "airflow alembic apprise deltalake evidently feast mlflow pandas pip psycopg setuptools sqlalchemy"
)
packages = [name for name in names.split() if find_spec(name)]
print(os.getuid(), os.access("/opt", os.W_OK), packages, shutil.which("gcc"), shutil.which("uv"))
"""


@pytest.fixture(scope="module")
def image(build):
    return build("serving")


@pytest.fixture(scope="module")
def replica(image, rig, tmp_path_factory):
    return Replica(image, rig, tmp_path_factory.mktemp("replica"))


def test_the_image_is_small_and_has_no_needless_package(image, base):
    size = int(podman("image", "inspect", "--format={{.Size}}", image))
    base_size = int(podman("image", "inspect", "--format={{.Size}}", base))
    megabytes = (size - base_size) / 1_000_000
    print(f"{megabytes:.0f} MB on top of its base")  # noqa: T201
    assert megabytes <= 230
    command = ("--entrypoint=python", image, "-c", INSTALLED)
    output = podman("run", "--rm", "--network=host", *command)
    assert output == "1000 False [] None None"
    label = '{{index .Labels "org.opencontainers.image.revision"}}'
    revision = podman("image", "inspect", f"--format={label}", image)
    assert revision == run("git", "rev-parse", "HEAD")


def test_the_image_answers_drains_and_refuses_versions_that_need_other_packages(
    rig, replica
):
    first = rig.register(-1.0).version
    rig.promote(first)
    with replica.running() as client:
        rig.answers_as(client, first)
        assert httpx.post(f"{client.base_url}/predict", json={}).status_code == 401
        assert rig.predict_online(client).is_success
        podman("healthcheck", "run", NAME)
        refused = f"version {promote_native(rig)} is refused: ModelRefusedError: "
        refused += "a model of mlflow.xgboost needs the image serving-full"
        shows(client, refused)
        promote_read_by_feast(rig)
        reader = "Feast's own reader (written for pandas) needs the image serving-full"
        shows(client, reader)
        assert rig.predict(client).json()["model_version"] == first
        assert refused in logs(NAME)
        drains(replica, client)


def drains(replica, client):
    """SIGTERM within a request: it is answered, and the container ends in time."""
    body = b'{"customer_id": 4}'
    head = "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"authorization: {TOKEN}\r\ncontent-length: {len(body)}\r\n"
    head += "expect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", replica.port), 600) as sent:
        sent.sendall(head.encode() + body[:5])
        assert sent.recv(4096).startswith(b"HTTP/1.1 100")  # it reads the body
        began = time.monotonic()
        podman("kill", "--signal=TERM", NAME)
        wait_until("no new ones", lambda: not answers(f"{client.base_url}/health/live"))
        sent.sendall(body[5:])
        with sent.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 200")
    assert podman("wait", NAME) == "0", logs(NAME)
    assert time.monotonic() - began < at_most(10)


def test_the_image_answers_within_5_seconds_from_its_volume_without_mlflow(
    rig, replica
):
    def start():
        began = time.monotonic()
        with replica.running() as client:
            wait_until("a prediction", lambda: rig.predict(client).is_success)
            return time.monotonic() - began

    with broken(rig, "mlflow", "killed"):
        seconds = min(start() for _ in range(3))  # this machine may be busy
    print(f"first answer {seconds:.1f} s after its start")  # noqa: T201
    assert seconds < at_most(5), seconds


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("GYRE_REDIS_URL", "redis:6379", "GYRE_REDIS_URL: "),
        ("GYRE_MLFLOW_URL", "mlflow:5000", "GYRE_MLFLOW_URL: "),
        ("GYRE_HOST", "0.0.0.0", "set GYRE_SERVING_TOKENS_FILE too"),
        ("GYRE_SERVING_TOKENS_FILE", "/run/secrets/none", "GYRE_SERVING_TOKENS_FILE: "),
    ],
)
def test_a_wrong_setting_ends_the_container_with_one_line(image, setting, value, named):
    lasted = "{{(.State.FinishedAt.Sub .State.StartedAt).Seconds}}"
    with container(NAME, image, f"--env={setting}={value}"):
        assert podman("wait", NAME) != "0"
        assert float(podman("inspect", f"--format={lasted}", NAME)) < at_most(10)
        (line,) = logs(NAME).splitlines()
    assert named in line
