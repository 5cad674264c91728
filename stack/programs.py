"""The processes of this stack: which there are, when each is ready, and how all are started."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import httpx

from core.errors import StackError
from core.settings import CLONE, LOOPBACK, PORTS, PROJECT, Settings
from core.spec import MODELS
from feature_repo.broker import consumer_problem, redis_problem
from mlflow_server import server
from stack.environment import airflow_environment, process_environment
from stack.machine import connection_problems, layout_problems, prepare
from stack.processes import (
    Program,
    end_stack,
    last_lines,
    render,
    restart,
    start,
    states,
    wait_ready,
)

STORES = ("redis", "mlflow")
"""What `feast apply` asks; the other processes get ready meanwhile."""
SERVING, CONSOLE = ("host", "serving_tokens_file"), ("console_host", "behind_proxy")
INIT = "init"
WORKER = ["airflow", "celery", "worker", "--skip-serve-logs"]
"""Where Airflow's executor is Celery's; as many as wanted, that share the folder of logs."""
WRITERS = ("tables", "1", "one task at a time writes tables")
"""The pool that every task writing Delta tables runs in."""
TASK = "task"
"""One task of Airflow in a pod of its own: the executor appends the command."""
READERS = ("console", "consumer", "dag-processor")
"""They read models/ and datasets when they start: what came since is seen by the next `up`."""


def programs(settings: Settings) -> list[Program]:
    """Return what is to be started; parts whose address is given are somebody else's."""
    given = {name for name in PORTS if getattr(settings, f"{name}_url", None)}
    own = [] if "redis" in given else [redis(settings)]
    if "airflow" in given:
        given |= {program.name for program in airflow_programs(settings)}
    return own + [each for each in own_programs(settings) if each.name not in given]


def own_programs(settings: Settings) -> list[Program]:
    """Return Gyre's and its tools' programs."""
    alive = partial(answers, f"{settings.mlflow_address}/health")
    serves = partial(answers, f"{settings.serving_address}/health/live")
    shows = partial(answers, f"{settings.console_address}/health/live")
    console = [sys.executable, "-m", "monitoring.console"]
    return [
        Program(
            "mlflow", server.command(settings), alive, server.environment(settings)
        ),
        *airflow_programs(settings),
        # Named here, so that `gyre up` sees a change.
        Program(
            "serving",
            [sys.executable, "-m", "serving"],
            serves,
            _given(settings, SERVING),
        ),
        Program("consumer", ["gyre", "consume"], partial(consumer_problem, settings)),
        Program("console", console, shows, _given(settings, CONSOLE)),
    ]


def _given(settings: Settings, names: Sequence[str]) -> dict[str, str]:
    """Return these settings as variables, but for those that are not set."""
    values = {f"GYRE_{name.upper()}": getattr(settings, name) for name in names}
    return {
        name: str(value) for name, value in values.items() if value not in {None, False}
    }


def redis(settings: Settings) -> Program:
    """Return this environment's redis-server, or the system's: the first in the PATH we give."""
    command = [
        "redis-server",
        "--bind",
        LOOPBACK,
        "--port",
        str(settings.redis_port),
        "--dir",
    ]
    command += [str(settings.home / "redis"), "--save", ""]
    # What serving acknowledged: a kill loses none of it, a power cut at most the last second.
    command += ["--appendonly", "yes", "--appendfsync", "everysec"]
    # It would overwrite the environment that `down` reads.
    command += [
        "--set-proc-title",
        "no",
    ]
    return Program("redis", command, partial(redis_problem, settings))


def airflow_programs(settings: Settings) -> list[Program]:
    health = partial(answers, f"{settings.airflow_address}/api/v2/monitor/health")
    return [
        Program(
            name, command, partial(health, component), airflow_environment(settings)
        )
        for name, component, command in (
            ("airflow-api", "metadatabase", ["airflow", "api-server"]),
            ("scheduler", "scheduler", [sys.executable, "-m", "stack.scheduler"]),
            ("dag-processor", "dag_processor", ["airflow", "dag-processor"]),
        )
    ]


def answers(url: str, component: str | None = None) -> str | None:
    """Return None if `url` answers with a 2xx status, else the problem.

    component: of Airflow, which its answer must call healthy.
    """
    try:
        answer = httpx.get(url, timeout=3).raise_for_status()
        state = answer.json()[component]["status"] if component else "healthy"
    except (httpx.HTTPError, ValueError, KeyError) as exc:
        return f"{url}: {type(exc).__name__} {exc}"
    return None if state == "healthy" else f"{component} is {state}"


def start_programs(settings: Settings, say: Callable[[str], None]) -> None:
    """Have all programs run as they are configured now, and the feature definitions published.

    Raises:
        StackError: a program or a tool failed; what this call started is ended again.

    """
    wanted = programs(settings)
    text, file = render(settings, wanted), settings.home / "run" / "supervisord.conf"
    is_up = states(settings) is not None and file.read_text() == text
    try:
        if is_up:
            changed = max(
                path.stat().st_mtime for path in (MODELS, *MODELS.glob("*.toml"))
            )
            for name in restart(settings, READERS, changed):
                say(f"  {name}: started again")
        else:
            # Of a killed supervisor, or with other settings.
            for line in end_stack(settings):
                say(f"  ended left-over {line}")
            _migrate(settings, say)
            start(settings, text)
        wait_ready(
            settings, [program for program in wanted if program.name in STORES], say
        )
        _publish(settings, say)
        wait_ready(
            settings, [program for program in wanted if program.name not in STORES], say
        )
    except BaseException:  # also Ctrl-C: nothing half-started stays
        if not is_up:
            end_stack(settings)
        raise


def run(settings: Settings, name: str, command: Sequence[str] = ()) -> None:
    """Become the program `name`; `init` does once what the others need.

    command: what TASK runs with the options of this stack's Airflow; no other program has one.

    Raises:
        StackError: there is none such, or a database, a Redis or a bucket is not to be had.

    """
    if found := layout_problems(settings.home) + connection_problems(settings):
        raise StackError("\n".join(found))
    prepare(settings)
    known = {program.name: program for program in own_programs(settings)}
    known["worker"] = replace(known["scheduler"], command=WORKER)
    known[TASK] = replace(known["scheduler"], command=[*command])
    if name not in {*known, INIT}:
        raise StackError(f"expected {INIT}, {', '.join(known)}; found {name}")
    if bool(command) != (name == TASK):
        raise StackError(f"a command is for {TASK} alone: gyre run {TASK} -- COMMAND")
    if name == INIT:
        _migrate(settings, print)
        _run_tool(settings, "airflow", "pools", "set", *WRITERS)
        _publish(settings, print)
        return
    os.chdir(CLONE)
    program = known[name]
    environment = process_environment(settings) | dict(program.environment)
    os.execvpe(program.command[0], program.command, environment)  # noqa: S606  (no shell)


def _migrate(settings: Settings, say: Callable[[str], None]) -> None:
    stamp, now = settings.home / "airflow" / "migrated", version("apache-airflow")
    if settings.database_url:
        now += f" {sha256(settings.database_url.encode()).hexdigest()}"
    if not stamp.exists() or stamp.read_text() != now:
        say("  airflow db migrate")
        _run_tool(settings, "airflow", "db", "migrate")
        stamp.write_text(now)


def _publish(settings: Settings, say: Callable[[str], None]) -> None:
    """Publish all definitions; where a dataset's module is broken, those of the others."""
    began = time.monotonic()
    try:
        _run_tool(settings, "feast", "apply")
    except StackError:
        from feature_repo.datasets import load_datasets  # noqa: PLC0415  (seconds)
        from feature_repo.store import publish_beside  # noqa: PLC0415

        datasets, broken = load_datasets()
        if not broken:
            raise
        publish_beside(settings, *datasets)
        say("\n".join(f"    not published: {problem}" for problem in broken))
    say(f"  features (feast apply): {time.monotonic() - began:.1f} s")


def _run_tool(settings: Settings, tool: str, *arguments: str) -> None:
    """Run a tool's own command beside the feature definitions, its output in logs/<tool>.log."""
    with (settings.home / "logs" / f"{tool}.log").open("a") as log:
        done = subprocess.run(
            [Path(sys.executable).parent / tool, *arguments],
            cwd=PROJECT / "feature_repo",
            env=process_environment(settings) | airflow_environment(settings),
            stdout=log,
            stderr=log,
            check=False,
        )
    if done.returncode:
        command, tail = " ".join((tool, *arguments)), last_lines(settings, tool)
        raise StackError(f"{command} failed ({done.returncode}):\n{tail}")
