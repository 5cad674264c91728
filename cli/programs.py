"""The processes of this stack: the one place that knows all of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_server import server
from stack import ready
from stack.environment import airflow_environment
from stack.processes import Program, redis

if TYPE_CHECKING:
    from stack.settings import Settings


def programs(settings: Settings) -> list[Program]:
    """Return what is to be started; parts whose address is given are somebody else's."""
    python, web = sys.executable, settings.airflow_address
    airflow, config = str(Path(python).parent / "airflow"), airflow_environment(settings)
    health = ready.answers(f"{web}/api/v2/monitor/health")
    own: list[Program] = []
    if settings.own_redis:
        own.append(Program("redis", redis(settings), ready.redis_pong(settings.redis_port)))
    if settings.own_mlflow:
        alive = ready.answers(f"{settings.mlflow_address}/health")
        command, variables = server.command(settings), server.environment(settings)
        own.append(Program("mlflow", command, alive, variables))
    scheduler, parser = ready.heartbeat(web, "scheduler"), ready.heartbeat(web, "dag_processor")
    serves = ready.answers(f"{settings.serving_address}/health/live")
    return [
        *own,
        Program("airflow-api", [airflow, "api-server"], health, config),
        Program("scheduler", [python, "-m", "stack.scheduler"], scheduler, config),
        Program("dag-processor", [airflow, "dag-processor"], parser, config),
        Program("serving", [python, "-m", "serving"], serves),
    ]
