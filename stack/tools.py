"""The tools of an installation: where each is, who logs in there, and its version or problem."""

from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

from core.errors import GyreError, RegistryError, StackError
from core.project import PROJECT
from core.settings import Settings
from feature_repo.online_store import redis_place, redis_problem, redis_version
from mlflow_server.api.login import read_login
from mlflow_server.api.rest import mlflow_version
from stack.airflow_api import AirflowApi
from stack.environment import LOGIN
from stack.machine import airflow_problems, connection_problems, mlflow_problems
from stack.supervisor import states

MISSING = "missing"
"""Name in place of a tool's where one does not answer, refuses, or has no package here."""


class Tool(NamedTuple):
    """A tool of an installation.

    Attributes:
        name: Its name.
        address: Its address, without a password, or its folder.
        user: Who logs in there; empty: nobody.
        state: Its version, or what is wrong with it.

    """

    name: str
    address: str
    user: str
    state: str


def find_tools(settings: Settings) -> list[Tool]:
    """Ask each tool for its version with the login of the installation.

    A line named MISSING follows for each thing that an installation needs before it can start.
    """
    definitions = str(settings.feast_repo or PROJECT / "feature_repo")
    tools = [Tool("Feast", definitions, "", version("feast"))]
    tools.append(
        Tool(
            name="Redis",
            address=redis_place(settings),
            user="",
            state=_state(settings, "redis", lambda: _redis(settings)),
        )
    )
    tools.append(
        Tool(
            name="MLflow",
            address=settings.mlflow_address,
            user=_mlflow_user(),
            state=_state(settings, "mlflow", lambda: mlflow_version(settings)),
        )
    )
    tools.append(
        Tool(
            name="Airflow",
            address=settings.airflow_address,
            user=settings.airflow_user or LOGIN,
            state=_state(settings, "airflow", lambda: _airflow(settings)),
        )
    )
    problems = (
        *connection_problems(settings),
        *mlflow_problems(settings),
        *airflow_problems(settings),
    )
    return tools + [Tool(MISSING, "", "", problem) for problem in problems]


def _state(settings: Settings, part: str, ask: Callable[[], str]) -> str:
    """Return a tool's version, or why it tells none; one of the stack's own may not run yet."""
    if part == "airflow" and part in settings.without:
        return "left out by GYRE_WITHOUT"
    try:
        return ask()
    except GyreError as exc:
        program = "airflow-api" if part == "airflow" else part
        if settings.starts(part) and program not in (states(settings) or {}):
            return "not running; gyre up starts it"
        return str(exc)


def _mlflow_user() -> str:
    try:
        return read_login().user
    except RegistryError:  # the request fails with it, too
        return ""


def _redis(settings: Settings) -> str:
    problem = redis_problem(settings)
    if problem:
        raise StackError(problem)
    return ".".join(map(str, redis_version(settings)))


def _airflow(settings: Settings) -> str:
    with AirflowApi(settings, timeout=5) as airflow:
        return airflow.version()
