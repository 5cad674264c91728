# ruff: noqa: INP001  (Airflow loads it as a file)
"""Middleware of Airflow's API: other sites, one write at a time on SQLite, health without a triggerer.

A request for another name, or a write that another site's page sends, is refused
(core/access/http_guard.py).

On SQLite two writes at once freeze the API, then fail: the audit log commits on the API's event
loop while a thread holds the database's write lock, so a longer timeout makes it worse. Reads are
not held up. With PostgreSQL no request waits.

No task of Gyre defers, so no triggerer runs (160 MB). Airflow's home page would show that in red.
"""

import asyncio
from typing import Any

from airflow.api.common.airflow_health import get_airflow_health
from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin
from starlette.responses import JSONResponse

IS_SQLITE = conf.get("database", "sql_alchemy_conn").startswith("sqlite")
READS = {"GET", "HEAD", "OPTIONS"}
HEALTH = "/api/v2/monitor/health"


class ApiMiddleware:
    """Pure ASGI: on SQLite, a request that may write waits for the one before it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.lock = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == HEALTH:
            health = await asyncio.to_thread(get_airflow_health)
            # None: no triggerer ever ran. The status of one that ran is kept.
            health["triggerer"]["status"] = health["triggerer"]["status"] or "healthy"
            await JSONResponse(health)(scope, receive, send)
        elif IS_SQLITE and scope.get("method", "GET") not in READS:
            async with self.lock:
                await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class OwnNames:
    """Pure ASGI: Gyre's rules for every server."""

    def __init__(self, app: Any) -> None:
        # A plugin is loaded by every process of Airflow; these are for the API alone.
        from core.access.http_guard import GuardMiddleware  # noqa: PLC0415
        from core.settings import load_settings  # noqa: PLC0415

        self.app = GuardMiddleware(app, load_settings())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


class ApiMiddlewarePlugin(AirflowPlugin):
    name = "api_middleware"
    # The last one is the outermost.
    fastapi_root_middlewares = [  # noqa: RUF012  (as Airflow has it)
        {"middleware": ApiMiddleware},
        {"middleware": OwnNames},
    ]
