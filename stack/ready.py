"""Questions to running services: each answers None, or says what is still missing."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import httpx

from stack.settings import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable


def answers(url: str) -> Callable[[], str | None]:
    """Ask for a 2xx answer of `url`."""

    def ask() -> str | None:
        try:
            status = httpx.get(url, timeout=3).status_code
        except httpx.HTTPError as exc:
            return f"{url}: {type(exc).__name__}"
        return None if httpx.codes.is_success(status) else f"{url}: {status}"

    return ask


def heartbeat(airflow: str, component: str) -> Callable[[], str | None]:
    """Ask Airflow whether its `component` (scheduler, dag_processor) is healthy."""
    url = f"{airflow}/api/v2/monitor/health"

    def ask() -> str | None:
        try:
            state = httpx.get(url, timeout=3).json()[component]["status"]
        except (httpx.HTTPError, ValueError, KeyError) as exc:
            return f"{url}: {type(exc).__name__}"
        return None if state == "healthy" else f"{component} is {state}"

    return ask


def redis_pong(port: int) -> Callable[[], str | None]:
    """Ask Redis to answer; while it reads its file it says LOADING."""

    def ask() -> str | None:
        try:
            with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64).decode(errors="replace").strip()
        except OSError as exc:
            return f"port {port}: {exc}"
        return None if answer == "+PONG" else answer

    return ask
