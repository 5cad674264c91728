"""The image that starts a whole stack in one container."""

import re
import subprocess
import time

import httpx
import pytest

from core.settings import free_ports
from tests.containers.conftest import container, logs
from tests.support.tools.images import CLONE_ID, podman

pytestmark = pytest.mark.containers
UP_SECONDS = 600
STOP_SECONDS = 60


def test_one_container_goes_from_nothing_to_a_prediction_and_ends_its_stack(
    build, tmp_path
):
    image = build("stack")
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["chown", "1000:1000", home], check=True)
    ports = free_ports()
    options = [f"--env=GYRE_{name.upper()}={port}" for name, port in ports.items()]
    options += [f"--volume={home}:/var/lib/gyre", "--tmpfs=/tmp"]
    name = f"gyre-stack-{CLONE_ID}"
    with container(name, image, *options):
        until = time.monotonic() + UP_SECONDS
        while "\nready in " not in logs(name):
            state = podman("inspect", "--format={{.State.Status}}", name)
            assert state == "running", logs(name)
            assert time.monotonic() < until, logs(name)
            time.sleep(2)
        (token,) = re.findall("^token of serving: (.+)$", logs(name), re.MULTILINE)
        address = f"http://127.0.0.1:{ports['serving_port']}/predict"
        body = {"customer_id": 51}
        assert httpx.post(address, json=body).status_code == httpx.codes.UNAUTHORIZED
        login = {"authorization": f"Bearer {token}"}
        answer = httpx.post(address, json=body, headers=login, timeout=30)
        assert answer.json()["model_version"] == "1"
        podman("stop", f"--time={STOP_SECONDS}", name)
        assert podman("inspect", "--format={{.State.ExitCode}}", name) == "0"
