"""The login at MLflow, as MLflow's own client has it: by its variables, and by its file.

They are read at each call, so that a corrected file holds without a restart. A variable counts more
than the file. `load_settings` makes variables of files in the secrets folder.
"""

import os
import ssl
from base64 import b64encode
from collections.abc import Mapping
from configparser import ConfigParser, Error
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path

from core.errors import RegistryError

USERNAME = "MLFLOW_TRACKING_USERNAME"
PASSWORD = "MLFLOW_TRACKING_PASSWORD"  # noqa: S105  (the name of a variable)
TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105
SERVER_CERTIFICATE = "MLFLOW_TRACKING_SERVER_CERT_PATH"
TLS_VARIABLES = (
    SERVER_CERTIFICATE,
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_INSECURE_TLS",
)
SIGNING = ("MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_AUTH")
"""Variables by which MLflow's client signs each request; Gyre does not."""
TRUE_WORDS = {"true", "1"}
"""Values that MLflow reads as true."""
FALSE_WORDS = {"", "false", "0"}
CREDENTIALS_FILE = Path("~/.mlflow/credentials")


@dataclass(frozen=True)
class Login:
    """A login at MLflow.

    Attributes:
        user: Who logs in, in words without a secret.
        headers: Headers of each request.

    """

    user: str = "nobody"
    headers: Mapping[str, str] = field(default_factory=dict)

    def refusal(self, status: int, action: str) -> str | None:
        """Return why MLflow refuses an action, and the remedy; None: it does not.

        Args:
            status: Status of MLflow's answer.
            action: The action, such as the name of a call.

        """
        if status == HTTPStatus.UNAUTHORIZED and not self.headers:
            remedy = f"set {USERNAME} and {PASSWORD}, or {TOKEN}, or write {CREDENTIALS_FILE}"
            return (
                f"MLflow asks for a login and there is none (401, {action}): {remedy}"
            )
        if status == HTTPStatus.UNAUTHORIZED:
            remedy = f"correct {USERNAME} and {PASSWORD}, {TOKEN} or {CREDENTIALS_FILE}"
            return f"MLflow refuses the login of {self.user} (401, {action}): {remedy}"
        if status == HTTPStatus.FORBIDDEN:
            remedy = (
                "give this user the permission in MLflow; if it refuses the host, list that in its "
                "MLFLOW_SERVER_ALLOWED_HOSTS"
            )
            return f"MLflow refuses {action} to {self.user} (403): {remedy}"
        return None


def read_login() -> Login:
    """Return the login as it is now; as in MLflow's client, a token is for want of a password.

    Raises:
        RegistryError: A variable asks for signed requests, or the file cannot be parsed.

    """
    for name in SIGNING:
        if os.environ.get(name, "").lower() not in FALSE_WORDS:
            raise RegistryError(
                f"{name} is set, and Gyre does not sign requests: unset it, run a proxy that signs "
                "them, and set GYRE_MLFLOW_URL to the proxy's address"
            )
    variables: dict[str, str] = {}
    with suppress(OSError, RuntimeError):  # no file, or no home
        path = CREDENTIALS_FILE.expanduser()
        variables |= _credentials(path, path.stat().st_mtime_ns)
    user = os.environ.get(USERNAME) or variables.get(USERNAME.lower())
    password = os.environ.get(PASSWORD) or variables.get(PASSWORD.lower())
    token = os.environ.get(TOKEN)
    if user and password:
        pair = b64encode(f"{user}:{password}".encode()).decode()
        return Login(f"the user {user!r}", {"authorization": f"Basic {pair}"})
    if token:
        return Login(f"the bearer of {TOKEN}", {"authorization": f"Bearer {token}"})
    return Login()


@lru_cache(maxsize=1)
def _credentials(path: Path, _time: int) -> Mapping[str, str]:
    """Return the values of MLflow's file; errors of its parser would show the password."""
    file = ConfigParser()
    try:
        file.read(path)
        return dict(file["mlflow"]) if "mlflow" in file else {}
    except (Error, UnicodeDecodeError):
        expected = "[mlflow], mlflow_tracking_username=…, mlflow_tracking_password=…"
        remedy = "write a % as %%"
        raise RegistryError(f"{path}: expected {expected}; {remedy}") from None


def tls_context() -> ssl.SSLContext:
    """Return the certificates that connections need; they are read again once a file changes.

    Raises:
        RegistryError: A file cannot be read.

    """
    values = [os.environ.get(name, "") for name in TLS_VARIABLES]
    try:
        times = [Path(path).stat().st_mtime_ns for path in values[:2] if path]
        return _tls_context(*values, *times)
    except OSError as exc:  # SSLError is one
        names = ", ".join(TLS_VARIABLES[:2])
        raise RegistryError(f"expected PEM files in {names}: {exc}") from exc


@lru_cache(maxsize=1)
def _tls_context(
    authorities: str, certificate: str, insecure: str, *_times: int
) -> ssl.SSLContext:
    is_folder = Path(authorities).is_dir()
    context = ssl.create_default_context(  # of the system, if there is no name
        cafile=None if is_folder else authorities,
        capath=authorities if is_folder else None,
    )
    if certificate:
        context.load_cert_chain(certificate)
    if insecure.lower() in TRUE_WORDS:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
