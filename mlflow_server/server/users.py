"""The user that a proxy with a login names, as the one header of each request that MLflow reads.

Flask takes `X_Forwarded_User` for `X-Forwarded-User`, and joins two of them by a comma. A client
could add a user of its choice behind a proxy that passes such a header on. So each header that Flask
would read is taken from the request, and the user of the proxy, if there is one, put in its place.
"""

from core.access.http_guard import (
    BAD_REQUEST,
    ASGIApp,
    Headers,
    Receive,
    Refusal,
    Scope,
    Send,
    send_refusal,
)

USER_HEADERS = (b"x-forwarded-user", b"x-remote-user")
"""Headers in which a proxy with a login names the user."""
USER_HEADER = "X-Forwarded-User"
"""Header that has the user for Flask."""


class UserMiddleware:
    """An ASGI application whose requests have one user in USER_HEADER, or none."""

    def __init__(self, app: ASGIApp, *, behind_proxy: bool) -> None:
        self.app = app
        self._behind_proxy = behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name.replace(b"_", b"-") not in USER_HEADERS
        ]
        if self._behind_proxy:
            users = named_users(scope["headers"])
            refusal = refusal_of(users)
            if refusal:
                await send_refusal(send, refusal)
                return
            headers += [(USER_HEADERS[0], user) for user in users]
        await self.app({**scope, "headers": headers}, receive, send)


def named_users(headers: Headers) -> set[bytes]:
    """Return the users that headers name; names of headers are in small letters."""
    return {value.strip() for name, value in headers if name in USER_HEADERS}


def refusal_of(users: set[bytes]) -> Refusal | None:
    """Return why a request with these users is refused; None: it has one, or none."""
    names = " and ".join(header.decode().title() for header in USER_HEADERS)
    remedy = "let the proxy set one of them, and drop both of a client's"
    if len(users) > 1:
        text = f"{names} name {len(users)} users, expected one: {remedy}"
        return Refusal(BAD_REQUEST, text)
    for user in users:
        if not is_name(user):
            text = f"{names} name the user {user!r}, expected printable text in UTF-8"
            return Refusal(BAD_REQUEST, f"{text}: {remedy}")
    return None


def is_name(user: bytes) -> bool:
    """Whether the value of a header is the name of a user that a row can show."""
    try:
        return bool(user) and user.decode().isprintable()
    except UnicodeDecodeError:
        return False


def author_of(header: str | None) -> str:
    """Return the author of a change in MLflow, for the ledger.

    Args:
        header: Value of USER_HEADER as Flask has it: its bytes as Latin-1; None: there is none.

    Returns:
        `mlflow-ui:USER`, or `mlflow-ui` without a user.

    """
    if header is None:
        return "mlflow-ui"
    return f"mlflow-ui:{header.encode('latin-1').decode()}"
