# ruff: noqa: INP001  (Airflow loads it as a file)
"""One write to Airflow's API at a time: on SQLite two at once freeze it, then fail.

The audit log commits on the API's event loop while a thread holds the database's write lock, so a
longer timeout makes it worse. Reads are not held up. With Postgres this does nothing.
"""

import asyncio
from typing import Any

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

READS = {"GET", "HEAD", "OPTIONS"}


class SerialiseWrites:
    """Pure ASGI: a request that may write waits for the one before it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.lock = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in READS:
            await self.app(scope, receive, send)
            return
        async with self.lock:
            await self.app(scope, receive, send)


class SerialiseWritesPlugin(AirflowPlugin):
    name = "serialise_writes"
    fastapi_root_middlewares: list[Any] = (
        [
            {
                "middleware": SerialiseWrites,
                "args": [],
                "kwargs": {},
                "name": "serialise writes",
            }
        ]
        if conf.get("database", "sql_alchemy_conn").startswith("sqlite")
        else []
    )
