"""Routes as a module gives them to a worker's application.

A module of an addition has a function `routes(settings, repository)` that returns a RouteSet, and
the entry `serving.additions` of core/additions.py lists the module.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.routing import BaseRoute

from serving.http.openapi import Operation
from serving.protocols.endpoint import ScoringRoute


@dataclass(frozen=True)
class RouteSet:
    """Routes of one module.

    Attributes:
        scoring: Routes that score rows.
        routes: Other routes. FastAPI describes its own.
        describe: Describes the route that FastAPI does not.
        close: Closes the connections of the routes.

    """

    scoring: Sequence[ScoringRoute] = ()
    routes: Sequence[BaseRoute] = ()
    describe: Callable[[], Awaitable[Operation]] | None = None
    close: Callable[[], Awaitable[None]] | None = None
