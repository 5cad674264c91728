"""The processes of this stack: the one place that knows all of them."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from feature_repo.broker import consumer_problem
from mlflow_server import server
from stack.environment import airflow_environment
from stack.processes import Program
from stack.ready import answers, redis_pong
from stack.settings import LOOPBACK

if TYPE_CHECKING:
    from stack.settings import Settings


def programs(settings: Settings) -> list[Program]:
    """Return what is to be started; parts whose address is given are somebody else's."""
    own = [] if settings.redis_url else [redis(settings)]
    if not settings.mlflow_url:
        alive = partial(answers, f"{settings.mlflow_address}/health")
        command, variables = server.command(settings), server.environment(settings)
        own.append(Program("mlflow", command, alive, variables))
    serves = partial(answers, f"{settings.serving_address}/health/live")
    serving = Program("serving", [sys.executable, "-m", "serving"], serves)
    shows = partial(answers, f"{settings.console_address}/health/live")
    console = Program("console", [sys.executable, "-m", "monitoring.console"], shows)
    reads = partial(consumer_problem, settings)
    consumer = Program("consumer", ["gyre", "consume"], reads)
    return [*own, *airflow_programs(settings), serving, consumer, console]


def redis(settings: Settings) -> Program:
    """Return this environment's redis-server, or the system's: the first in the PATH we give."""
    command = ["redis-server", "--bind", LOOPBACK, "--port", str(settings.redis_port), "--dir"]
    command += [str(settings.home / "redis"), "--save", ""]
    # What serving acknowledged: a kill loses none of it, a power cut at most the last second.
    command += ["--appendonly", "yes", "--appendfsync", "everysec"]
    command += ["--set-proc-title", "no"]  # it would overwrite the environment that `down` reads
    return Program("redis", command, partial(redis_pong, settings.redis_port))


def airflow_programs(settings: Settings) -> list[Program]:
    health = partial(answers, f"{settings.airflow_address}/api/v2/monitor/health")
    return [
        Program(name, command, partial(health, component), airflow_environment(settings))
        for name, component, command in (
            ("airflow-api", "metadatabase", ["airflow", "api-server"]),
            ("scheduler", "scheduler", [sys.executable, "-m", "stack.scheduler"]),
            ("dag-processor", "dag_processor", ["airflow", "dag-processor"]),
        )
    ]
