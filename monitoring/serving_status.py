"""What each replica of serving says of itself, read over HTTP like anybody else does."""

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from core.settings import Settings
from core.tokens import serving_headers

TIMEOUT_SECONDS = 5
TLS = httpx.create_ssl_context()
"""Of all calls: to make one takes 20 ms."""


@dataclass(frozen=True)
class ServingCounts:
    """What a replica has not done since it started.

    Attributes:
        not_logged: Rows of predictions that could not be logged.
        refused: Requests that were answered with 429 or 503.

    """

    not_logged: int
    refused: int


def replicas_of(settings: Settings) -> dict[str, str]:
    """Return the URL of each replica: a DNS name may resolve to several of them."""
    replicas: dict[str, str] = {}
    for address in settings.serving_addresses:
        url = httpx.URL(address)
        hosts: set[str] = set()
        if url.scheme == "http":  # a certificate is of the name
            with suppress(OSError):  # whoever asks the address says so
                hosts = set(socket.gethostbyname_ex(url.host)[2])
        for host in sorted(hosts):
            own_url = str(url.copy_with(host=host))
            asked_url = own_url if len(hosts) > 1 else address
            replicas[f"{address} at {own_url}"] = asked_url
        if not hosts:
            replicas[address] = address
    return replicas


def read_statuses(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return what each replica says of itself, by its address; raises as `read_status`."""
    replicas = replicas_of(settings).items()
    return {replica: read_status(settings, address) for replica, address in replicas}


def read_status(settings: Settings, address: str) -> dict[str, Any]:
    """Return the answer of /status at an address of `replicas_of`.

    Raises:
        httpx.HTTPError: It does not answer.
        SettingsError: There is no token to ask with.
        ValueError: It does not answer in JSON.

    """
    answer = httpx.get(
        f"{address}/status",
        headers=serving_headers(settings),
        timeout=TIMEOUT_SECONDS,
        verify=TLS,
    )
    status: dict[str, Any] = answer.raise_for_status().json()
    return status


def serving_counts(settings: Settings) -> dict[str, ServingCounts] | None:
    """Return the counts of each replica, by its address; None where one does not answer."""
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
