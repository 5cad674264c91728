"""An MLflow as a team has it: MLflow's own login, behind nginx with TLS of the team's own authority."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from tests.conftest import BIN, answers, running, unused_port, wait_until
from tests.support.tools.debian import of_journeys

ADMIN = ("admin", "first-admin-password")
USER = ("gyre", "100%:sure %(ENV_HOME)s")
"""With characters that configuration files give a meaning."""
OPENSSL = """
req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
req -newkey rsa:2048 -nodes -subj /CN=mlflow -keyout server.key -out server.csr
x509 -req -days 2 -in server.csr -CA ca.pem -CAkey ca.key -set_serial 1 -extfile names -out server.pem
"""
NGINX = """
daemon off;
user root;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate server.pem;
        ssl_certificate_key server.key;
        location / {{ proxy_pass http://127.0.0.1:{mlflow_port}; proxy_set_header Host $http_host; }}
    }}
}}
"""
AUTH = """
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/auth.db
admin_username = {user}
admin_password = {password}
auth_cache_ttl_seconds = 60
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@dataclass(frozen=True)
class TeamMlflow:
    """The server.

    Attributes:
        address: Address of nginx.
        plain: Address of MLflow behind it.
        authority: File with the certificate of its authority.

    """

    address: str
    plain: str
    authority: Path

    def as_admin(self, method: str, call: str, **body: str) -> None:
        url = f"{self.plain}/api/2.0/mlflow/{call}"
        httpx.request(method, url, json=body, auth=ADMIN, timeout=60).raise_for_status()

    @property
    def login(self) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_USERNAME": USER[0],
            "MLFLOW_TRACKING_PASSWORD": USER[1],
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(self.authority),
        }


@contextmanager
def nginx_before(mlflow_port: int, folder: Path) -> Iterator[str]:
    """Run nginx with TLS before an MLflow; its address. The authority is `ca.pem` in the folder."""
    of_journeys("nginx")
    port = unused_port()
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    (folder / "nginx.conf").write_text(NGINX.format(port=port, mlflow_port=mlflow_port))
    for arguments in OPENSSL.strip().splitlines():
        command = ["openssl", *arguments.split()]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or "nginx"
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running(command, folder / "nginx.log") as process:
        wait_until("nginx", partial(is_listening, port), process=process)
        yield f"https://127.0.0.1:{port}"


def is_listening(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextmanager
def team_mlflow(folder: Path, *artifacts: str) -> Iterator[TeamMlflow]:
    """Run MLflow with a user `gyre`. artifacts: Options of `mlflow server` about artifacts."""
    folder.mkdir(parents=True)
    mlflow_port = unused_port()
    plain = f"http://127.0.0.1:{mlflow_port}"
    auth = AUTH.format(folder=folder, user=ADMIN[0], password=ADMIN[1])
    (folder / "auth.ini").write_text(auth)
    artifacts = artifacts or ("--artifacts-destination", str(folder / "artifacts"))
    command = [str(BIN / "mlflow"), "server", "--app-name", "basic-auth", *artifacts]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1"]
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of the test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (
        process_group(command, folder / "mlflow.log", variables),
        nginx_before(mlflow_port, folder) as address,
    ):
        server = TeamMlflow(address, plain, folder / "ca.pem")
        wait_until("the team's MLflow", lambda: answers(f"{plain}/health"))
        server.as_admin("POST", "users/create", username=USER[0], password=USER[1])
        yield server


@contextmanager
def process_group(
    command: list[str], log: Path, variables: dict[str, str]
) -> Iterator[None]:
    """Run `mlflow server`, and end with it the server that it starts."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd=log.parent,
            env=os.environ | variables,
            start_new_session=True,
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
