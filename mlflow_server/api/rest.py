"""MLflow's REST API by plain HTTP: MLflow takes 2 s to import, and 150 MB."""

from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import urllib3

from core.errors import ArtifactError, RegistryError, RegistryUnavailableError
from core.settings import Settings

TIMEOUT_SECONDS = 5
DOWNLOAD_SECONDS = 10
CONNECTIONS = urllib3.PoolManager(maxsize=16, headers={"connection": "close"})
"""Each call has a new connection, as a proxy may have dropped an older one without notice. Proxies
of the environment are not used, as MLflow is an inner server."""


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


def read_artifact(settings: Settings, uri: str, place: str) -> bytes:
    """Return a file below an artifact address, as MLflow's artifact proxy sends it.

    Raises:
        RegistryError: MLflow does not answer.
        ArtifactError: MLflow has no such file, or its store does not answer.

    """
    proxy = f"{settings.mlflow_address}/api/2.0/mlflow-artifacts/artifacts"
    address = f"{proxy}{urllib3.util.parse_url(uri).path}/{place}"
    answer = _send("GET", address, DOWNLOAD_SECONDS)
    if answer.status >= HTTPStatus.BAD_REQUEST:
        reason = answer.data.decode(errors="replace")[:200]
        text = f"MLflow answered {answer.status}: {reason}"
        raise ArtifactError(f"{place}: {text} (its files are at {uri})")
    return answer.data


def _send(
    method: str, address: str, seconds: float, **content: Any
) -> urllib3.BaseHTTPResponse:
    try:
        return CONNECTIONS.request(
            method, address, timeout=seconds, retries=False, **content
        )
    except urllib3.exceptions.HTTPError as exc:
        reason = str(exc).rpartition(": ")[2]
        problem = f"MLflow does not answer (is it up?): {address}: {reason}"
        raise RegistryUnavailableError(problem) from exc
