"""MLflow's REST API by plain HTTP: MLflow takes 2 s to import, and 150 MB."""

from functools import lru_cache
from http import HTTPStatus
from ssl import SSLContext
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from core.errors import (
    ArtifactError,
    DataError,
    RegistryError,
    RegistryUnavailableError,
)
from core.files import location, read_file
from core.settings import Settings
from mlflow_server.api.login import SERVER_CERTIFICATE, read_login, tls_context
from mlflow_server.api.store import may_open

TIMEOUT_SECONDS = 5
DOWNLOAD_SECONDS = 10


def call_mlflow(
    settings: Settings,
    call: str,
    body: dict[str, Any] | None = None,
    method: str | None = None,
    **query: str,
) -> dict[str, Any] | None:
    """Return MLflow's answer; None if there is no such model, version or run.

    Args:
        settings: Settings of the installation.
        call: Path below `/api/2.0/mlflow/`.
        body: JSON document, if the call has one.
        method: POST with a body and GET without one, by default.
        query: Parameters in the address.

    Raises:
        RegistryError: MLflow does not answer, or refuses.

    """
    address = f"{settings.mlflow_address}/api/2.0/mlflow/{call}?{urlencode(query)}"
    method = method or ("POST" if body else "GET")
    answer = _send(method, address, TIMEOUT_SECONDS, json=body)
    try:
        content: dict[str, Any] = answer.json()
    except ValueError as exc:
        text = f"HTTP {answer.status} without JSON"
        raise RegistryError(f"MLflow does not answer: {call}: {text}") from exc
    if answer.status == HTTPStatus.NOT_FOUND and "error_code" in content:
        return None
    if answer.status >= HTTPStatus.BAD_REQUEST:
        message = " ".join(str(content.get("message", content)).split())
        raise RegistryError(f"MLflow refuses {call}: {message}")
    return content


def mlflow_version(settings: Settings) -> str:
    """Return MLflow's version, once it has taken the login.

    Raises:
        RegistryError: MLflow does not answer, or refuses the login.

    """
    call_mlflow(settings, "experiments/search", {"max_results": 1})
    address = f"{settings.mlflow_address}/version"
    answer = _send("GET", address, TIMEOUT_SECONDS)
    return answer.data.decode()


def read_artifact(settings: Settings, uri: str, place: str) -> bytes:
    """Return a file below an artifact address.

    MLflow's artifact proxy sends it, or it is read where MLflow keeps it: on S3 or a shared disk.

    Raises:
        RegistryError: MLflow does not answer, or refuses the login.
        ArtifactError: There is no such file, its store does not answer, or the address is outside
            the store of Gyre's own MLflow.

    """
    if not may_open(settings, uri):
        text = f"{uri!r} is not in the store of this installation's MLflow"
        raise ArtifactError(f"{place}: not read: {text}")
    parts = urlsplit(uri)
    if parts.scheme in {"", "file", "s3"}:
        folder = location(uri if parts.scheme == "s3" else parts.path)
        try:
            return read_file(folder / place)
        except (DataError, FileNotFoundError) as exc:
            raise ArtifactError(f"{place}: {exc}") from exc
    if parts.scheme != "mlflow-artifacts":
        expected = "expected files at mlflow-artifacts:, s3:// or file:"
        remedy = "start MLflow with --serve-artifacts"
        raise ArtifactError(f"{place}: {expected}, found {uri}: {remedy}")
    proxy = f"{settings.mlflow_address}/api/2.0/mlflow-artifacts/artifacts"
    answer = _send("GET", f"{proxy}{parts.path}/{place}", DOWNLOAD_SECONDS)
    if answer.status >= HTTPStatus.BAD_REQUEST:
        reason = answer.data.decode(errors="replace")[:200]
        text = f"MLflow answered {answer.status}: {reason}"
        raise ArtifactError(f"{place}: {text} (its files are at {uri})")
    return answer.data


def _send(
    method: str, address: str, seconds: float, **content: Any
) -> urllib3.BaseHTTPResponse:
    """Return MLflow's answer to a request with the login of now."""
    login = read_login()
    context = tls_context() if address.startswith("https:") else None
    # A new connection each time, as a proxy may have dropped an older one without notice.
    headers = {"connection": "close", **login.headers}
    page = address.partition("?")[0]
    try:
        answer = _connections(context).request(
            method,
            address,
            headers=headers,
            timeout=seconds,
            retries=False,
            **content,
        )
    except urllib3.exceptions.SSLError as exc:
        remedy = f"name the file of its authority in {SERVER_CERTIFICATE}"
        raise RegistryError(f"no TLS with MLflow: {page}: {exc}: {remedy}") from exc
    except urllib3.exceptions.HTTPError as exc:
        reason = str(exc).rpartition(": ")[2]
        problem = f"MLflow does not answer (is it up?): {page}: {reason}"
        raise RegistryUnavailableError(problem) from exc
    refusal = login.refusal(answer.status, page)
    if refusal:
        raise RegistryError(refusal)
    return answer


@lru_cache(maxsize=2)
def _connections(context: SSLContext | None) -> urllib3.PoolManager:
    """Return a pool. Proxies of the environment are not used, as MLflow is an inner server."""
    return urllib3.PoolManager(maxsize=16, ssl_context=context)
