"""Questions to running services: each answers None, or says what is still missing."""

from __future__ import annotations

import httpx
from redis import Redis, RedisError

from stack.settings import LOOPBACK


def answers(url: str, component: str | None = None) -> str | None:
    """Ask for a 2xx answer of `url`, and for Airflow's word that its `component` is healthy."""
    try:
        answer = httpx.get(url, timeout=3).raise_for_status()
        state = answer.json()[component]["status"] if component else "healthy"
    except (httpx.HTTPError, ValueError, KeyError) as exc:
        return f"{url}: {type(exc).__name__} {exc}"
    return None if state == "healthy" else f"{component} is {state}"


def redis_pong(port: int) -> str | None:
    """Ask Redis to answer; while it reads its file it says that it is loading."""
    try:
        with Redis(LOOPBACK, port, socket_timeout=1, socket_connect_timeout=1) as redis:
            redis.ping()
    except RedisError as exc:
        return f"port {port}: {exc}"
    return None
