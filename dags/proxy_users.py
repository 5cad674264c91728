"""Airflow's auth manager where a proxy asks people who they are and names them.

`AIRFLOW__CORE__AUTH_MANAGER=dags.proxy_users.ProxyUsers`; only the proxy may reach Airflow's API,
besides Gyre's own programs, which log in with a password. Without GYRE_BEHIND_PROXY nobody is
named so.
"""

from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import (
    SimpleAuthManager,
)
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

from core.settings import load_settings

USER_HEADER = b"x-forwarded-user"


class ProxyUser:
    """Gives a request the token of the person that the proxy named, an admin."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        if name := headers.get(USER_HEADER, b"").decode("latin-1"):
            person = SimpleAuthManagerUser(username=name, role="ADMIN")
            token = get_auth_manager().generate_jwt(person)
            given = (b"authorization", f"Bearer {token}".encode())
            kept = [pair for pair in scope["headers"] if pair[0] != given[0]]
            scope = {**scope, "headers": [*kept, given]}
        await self.app(scope, receive, send)


class ProxyUsers(SimpleAuthManager):
    """SimpleAuthManager, whose login it keeps for requests in which no proxy names a person."""

    def get_fastapi_middlewares(self) -> list[Any]:
        return [(ProxyUser, {})] if load_settings().behind_proxy else []
