"""What a module of routes gives to a worker's application.

A module that the entry `serving.additions` of core/additions.py lists may have both of these:
    SCORING: a list of ScoringRoute, the routes that score rows;
    routes(settings, repository): a function that returns a RouteSet of its other routes.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.routing import BaseRoute

from serving.http.openapi import Operation


@dataclass(frozen=True)
class RouteSet:
    """Routes that read and answer requests by themselves.

    Attributes:
        routes: The routes. FastAPI describes its own.
        describe: Describes the route that FastAPI does not.
        close: Closes the connections of the routes.

    """

    routes: Sequence[BaseRoute]
    describe: Callable[[], Awaitable[Operation]] | None = None
    close: Callable[[], Awaitable[None]] | None = None
