"""The status of each replica of serving, which is read over HTTP as by any other client."""

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from core.settings import Settings
from core.tokens import serving_headers

TIMEOUT_SECONDS = 5
TLS = httpx.create_ssl_context()
"""TLS context of all calls: to make one takes 20 ms."""


@dataclass(frozen=True)
class ServingCounts:
    """Counts of a replica since it started.

    Attributes:
        not_logged: Number of prediction rows that could not be logged.
        refused: Number of requests that were answered with 429 or 503.

    """

    not_logged: int
    refused: int


def replicas_of(settings: Settings) -> dict[str, str]:
    """Return the URL of each replica by its name. A DNS name may resolve to several replicas."""
    replicas: dict[str, str] = {}
    for address in settings.serving_addresses:
        url = httpx.URL(address)
        hosts: set[str] = set()
        if url.scheme == "http":  # a TLS certificate holds for the DNS name alone
            # The request to the address fails with a clearer error.
            with suppress(OSError):
                hosts = set(socket.gethostbyname_ex(url.host)[2])
        for host in sorted(hosts):
            host_url = str(url.copy_with(host=host))
            name = f"{address} at {host_url}"
            replicas[name] = host_url if len(hosts) > 1 else address
        if not hosts:
            replicas[address] = address
    return replicas


def read_statuses(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the status of each replica by its name; raises as `read_status`."""
    return {
        replica: read_status(settings, address)
        for replica, address in replicas_of(settings).items()
    }


def read_status(settings: Settings, address: str) -> dict[str, Any]:
    """Return the answer of /status at an address of `replicas_of`.

    Raises:
        httpx.HTTPError: The address does not answer.
        SettingsError: There is no token for the request.
        ValueError: The answer is not JSON.

    """
    answer = httpx.get(
        f"{address}/status",
        headers=serving_headers(settings),
        timeout=TIMEOUT_SECONDS,
        verify=TLS,
    )
    status: dict[str, Any] = answer.raise_for_status().json()
    return status


def read_metrics(address: str) -> str:
    """Return the answer of /metrics, which needs no token, at an address of `replicas_of`.

    Raises:
        httpx.HTTPError: The address does not answer.

    """
    answer = httpx.get(f"{address}/metrics", timeout=TIMEOUT_SECONDS, verify=TLS)
    return answer.raise_for_status().text


def serving_counts(settings: Settings) -> dict[str, ServingCounts] | None:
    """Return the counts of each replica by its name; None if one of them does not answer."""
    try:
        statuses = read_statuses(settings)
    except (httpx.HTTPError, ValueError):
        return None
    counts = {}
    for replica, status in statuses.items():
        refusals = status["counts"]["requests_refused"]
        counts[replica] = ServingCounts(
            not_logged=int(status["counts"]["log_failures"]["predictions"]),
            refused=int(sum(refusals.values())),
        )
    return counts
