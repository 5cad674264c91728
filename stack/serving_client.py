"""Requests to serving, by HTTP as every client sends them."""

import httpx

from core.settings import Settings
from core.tokens import serving_headers


def ask_serving(
    settings: Settings, path: str, rows: object, seconds: float = 60
) -> httpx.Response:
    """Return serving's answer to one row, or at a path that ends with `/batch` to several.

    Args:
        settings: They have the address of serving, and a token.
        path: Such as `/predict`, or `/models/MODEL/explain`.
        rows: What the route takes.
        seconds: To wait for the answer.

    """
    return httpx.post(
        settings.serving_address + path,
        json=rows,
        headers=serving_headers(settings),
        timeout=seconds,
        trust_env=False,
    )
