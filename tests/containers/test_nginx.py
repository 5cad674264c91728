"""What deploy/nginx.conf lets through, in nginx before a server that says what it was asked for."""

import http.client
import os
import re
import shutil
import ssl
import subprocess
import threading
from base64 import b64encode
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from core.project import CLONE
from tests.conftest import running, unused_port, wait_until
from tests.support.tools.team_mlflow import is_listening

pytestmark = pytest.mark.journey

CONFIG = (CLONE / "deploy" / "nginx.conf").read_text()
FRAME = """
daemon off;
{user}
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {config}
}}
"""
CERTIFICATE = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=gyre "
    "-keyout tls_key -out tls_certificate"
)
LOGIN = {"Authorization": f"Basic {b64encode(b'ann:secret').decode()}"}
SERVING = 8000
AIRFLOW = 8080
OF_PEOPLE = [5000, AIRFLOW, 8001, 3000]
WRITES = ("POST", "PUT", "PATCH", "DELETE", "MKCOL")
OTHER_SITES = ["cross-site", "same-site", "", "odd"]


class Echo(BaseHTTPRequestHandler):
    """Answers with the path of the request."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        body = f"asked for {self.path}".encode()
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


for method in ("GET", *WRITES):
    setattr(Echo, f"do_{method}", Echo.answer)


@contextmanager
def echo_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    """The port of nginx in the place of each port of the configuration."""
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    subprocess.run(CERTIFICATE.split(), cwd=folder, check=True, capture_output=True)
    (folder / "htpasswd").write_text("ann:{PLAIN}secret\n")
    ports = {port: unused_port() for port in (SERVING, *OF_PEOPLE)}
    with echo_server() as address:
        names = r"(serving-[ab]|mlflow|airflow-api|console|grafana):\d+"
        config = re.sub(names, address, CONFIG)
        config = config.replace("/run/secrets", str(folder))
        for port, free_port in ports.items():
            config = config.replace(
                f"listen {port} ssl", f"listen 127.0.0.1:{free_port} ssl"
            )
        # Else its workers are of another user, who cannot enter the folder.
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(FRAME.format(user=user, config=config))
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        with running(command, folder / "nginx.log") as process:
            listening = partial(is_listening, ports[SERVING])
            wait_until("nginx", listening, process=process)
            yield ports


def ask(port, path, method="GET", **headers):
    """Send a path as it is; return the status of the answer."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
    try:
        connection.putrequest(method, path)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/metrics/",
        "//metrics",
        "/metrics//",
        "/%6detrics",
        "/./metrics",
        "/metrics%2f",
        "/metrics%2F%2f/",
        "/x/..%2fmetrics/",
        "/metrics/x/..",
        "/metrics?x",
        "/metrics/?x",
    ],
)
def test_serving_shows_its_metrics_to_no_client(ports, path):
    assert ask(ports[SERVING], path) == 404


@pytest.mark.parametrize("path", ["/predict", "/metrics-of-mine", "/v2/metrics"])
def test_other_paths_of_serving_are_passed_on(ports, path):
    assert ask(ports[SERVING], path) == 200


@pytest.mark.parametrize("path", ["/execution/", "/execution%2fx", "//execution/x"])
def test_people_do_not_reach_what_airflows_tasks_ask(ports, path):
    assert ask(ports[AIRFLOW], path, **LOGIN) == 404


@pytest.mark.parametrize("port", OF_PEOPLE)
def test_a_page_of_another_site_may_read_and_not_write(ports, port):
    for site in OTHER_SITES:
        headers = LOGIN | {"Sec-Fetch-Site": site}
        # An empty header is passed on as none.
        expected = 403 if site else 200
        for method in WRITES:
            assert ask(ports[port], "/", method, **headers) == expected, (method, site)
        assert ask(ports[port], "/", **headers) == 200
        upgrade = {"Upgrade": "websocket"}
        assert ask(ports[port], "/", **headers, **upgrade) == expected
    for headers in ({}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
        assert ask(ports[port], "/", "POST", **LOGIN, **headers) == 200
