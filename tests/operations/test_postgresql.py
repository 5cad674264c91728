"""PostgreSQL's programs: their arguments, which each user of the machine sees, have no secret."""

import os
import socket
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from core.errors import StackError
from operations.postgresql import run_on_database
from tests.conftest import new_settings
from tests.support.stores.postgres import programs


class TlsServer:
    """A server that wants TLS: it notes the client's process, and whether a handshake begins."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.arguments = []
        self.begins_handshake = False

    def serve(self):
        client, _ = self.socket.accept()
        with client:
            client.recv(8)  # it asks for TLS
            for process in psutil.Process().children():
                if process.name() == "pg_dump":
                    self.arguments = process.cmdline()
            client.sendall(b"S")
            # The client has opened its key by then.
            self.begins_handshake = client.recv(1) == b"\x16"


def write_encrypted_key(folder, password):
    """Write `key.pem` and `cert.pem`; return them as parameters of an address."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gyre")])
    begin = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    encryption = serialization.BestAvailableEncryption(password.encode())
    key_bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    key_file = folder / "key.pem"
    key_file.touch(0o600)
    key_file.write_bytes(key_bytes)
    certificate_file = folder / "cert.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return f"sslmode=require&sslkey={key_file}&sslcert={certificate_file}"


@pytest.mark.journey
def test_no_secret_of_the_address_is_an_argument_of_pg_dump(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{programs()}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("PGSERVICE", raising=False)
    files = write_encrypted_key(tmp_path, "hunter2 #key")
    server = TlsServer()
    with server.socket, ThreadPoolExecutor() as pool:
        serving = pool.submit(server.serve)
        address = f"postgresql://gyre:hunter2@127.0.0.1:{server.port}/db?{files}"
        with_key = f"{address}&sslpassword=hunter2%20%23key"
        settings = new_settings(tmp_path / "home", database_url=with_key)
        with pytest.raises(StackError, match=r"^pg_dump: ") as raised:
            run_on_database(settings, "pg_dump")
        serving.result()
    assert server.begins_handshake, raised.value
    assert f"port={server.port}" in " ".join(server.arguments)
    assert "hunter2" not in " ".join(server.arguments)


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("u:hunter2%ZZ@host/db", "write %25 for a percent sign"),
        (
            "u@host/db?service=shop&sslpassword=hunter2",
            "expected no sslpassword beside a service of PostgreSQL",
        ),
        ("u@host/db?sslpassword=hunter2%20", "without a blank at its ends"),
    ],
)
def test_an_address_that_would_show_a_secret_is_refused(tmp_path, rest, expected):
    address = f"postgresql://{rest}"
    settings = new_settings(tmp_path / "home", database_url=address)
    with pytest.raises(StackError) as raised:
        run_on_database(settings, "pg_dump")
    assert expected in str(raised.value)
    log = "".join(traceback.format_exception(raised.value))
    assert "hunter2" not in log
