"""The programs of a stack: their commands, when each is ready, and how they are started."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name

from core.access.private_home import close_home
from core.additions import present
from core.errors import StackError
from core.project import CLONE, PROJECT
from core.settings import Settings
from core.spec import MODELS
from feature_repo.online_store import (
    find_server,
    redis_place,
    redis_problem,
    redis_warning,
)
from stack.airflow_api import WRITE_POOL
from stack.airflow_config import airflow_config
from stack.environment import REDIS_BINARY, process_environment
from stack.machine import connection_problems, layout_problems, prepare
from stack.readiness import answers
from stack.supervisor import (
    Program,
    configuration,
    end_stack,
    last_lines,
    start,
    start_supervisor,
    states,
    stop_older,
    wait_ready,
)

INIT = "init"
"""Name of the program that prepares databases, pool and features once, and ends."""
TASK = "task"
"""Name of the program of one task of Airflow in a pod; the executor appends its command."""
WORKER = "airflow celery worker --skip-serve-logs"
"""A worker, where Airflow's executor is Celery's. Several workers share the folder of logs."""
REDIS = (
    "python -m stack.redis_file '%(ENV_GYRE_HOME)s/redis'"
    # The password is in a file: everybody can see a process's arguments.
    f" '%(ENV_{REDIS_BINARY})s' '%(ENV_GYRE_HOME)s/redis.conf'"
    " --bind 127.0.0.1 --port %(ENV_GYRE_REDIS_PORT)s"
    " --dir '%(ENV_GYRE_HOME)s/redis' --save ''"
    # A kill loses nothing that serving acknowledged, a power cut at most the last second.
    " --appendonly yes --appendfsync everysec"
    # A title would overwrite the environment that `gyre down` reads.
    " --set-proc-title no"
)


_airflow_health = partial(answers, "airflow", "/api/v2/monitor/health")
MLFLOW_SERVER = Program(
    "mlflow",
    "python -m mlflow_server.server.command",
    problem=answers("mlflow", "/health"),
    part="mlflow",
)
MLFLOW_FOLLOWER = Program(
    "mlflow-follower",
    "python -m mlflow_server.server.follower",
    problem=lambda _settings: None,  # it waits for MLflow
    part="mlflow",
    is_elsewhere=True,
)
REDIS_SERVER = Program("redis", REDIS, problem=redis_problem, part="redis")
AIRFLOW_API = Program(
    "airflow-api",
    "airflow api-server",
    problem=_airflow_health("metadatabase"),
    part="airflow",
)
SCHEDULER = Program(
    "scheduler",
    "python -m stack.scheduler",
    problem=_airflow_health("scheduler"),
    part="airflow",
)
DAG_PROCESSOR = Program(
    "dag-processor",
    "airflow dag-processor",
    problem=_airflow_health("dag_processor"),
    part="airflow",
    reads_project=True,
)
SERVING = Program(
    "serving",
    "python -m serving",
    problem=answers("serving", "/health/live"),
    part="serving",
)
NEEDED_BY_INGEST = (REDIS_SERVER, AIRFLOW_API, SCHEDULER, DAG_PROCESSOR, SERVING)
"""Programs that are ready before an ingest starts."""
SLOWEST = (MLFLOW_SERVER, MLFLOW_FOLLOWER)
"""Programs that are started first, and awaited last."""
ADDED = tuple(
    resolve_name(path) for addition in present() for path in addition.programs
)
"""Programs of the additions that are present, in the order of their table."""
PROGRAMS = (*SLOWEST, *NEEDED_BY_INGEST, *ADDED)


def local_programs(settings: Settings, programs: Sequence[Program]) -> list[Program]:
    """Return the programs to start, by which parts run elsewhere or are left out."""
    return [
        program
        for program in programs
        if settings.starts(program.part) != program.is_elsewhere
    ]


def used_elsewhere(settings: Settings) -> list[str]:
    """Return a line for each program of a team that is used and not started."""
    addresses = {
        "redis": redis_place(settings),
        "mlflow": settings.mlflow_address,
    }
    if "airflow" not in settings.without:
        addresses["airflow"] = settings.airflow_address
    return [
        f"{part}: not started, the one at {address} is used"
        for part, address in addresses.items()
        if not settings.starts(part)
    ]


@contextmanager
def start_stack(settings: Settings, say: Callable[[str], None]) -> Iterator[None]:
    """Start all programs with today's configuration, and publish the feature definitions.

    In the block an ingest can run, while MLflow and programs of additions may still start. After
    the block every program is ready.

    Args:
        settings: Settings of the stack, whose home is prepared.
        say: Takes lines about the progress.

    Raises:
        StackError: A program or a tool failed. Processes that this call started are ended again.

    """
    needed_by_ingest = local_programs(settings, NEEDED_BY_INGEST)
    file = settings.home / "run" / "started"
    digest = _configuration_digest(settings)
    was_up = states(settings) is not None and _content(file) == digest
    try:
        if was_up:
            _stop_outdated(settings)
        else:
            # They are of a killed supervisor, or have other settings.
            for line in end_stack(settings):
                say(f"  ended left-over {line}")
            environment = supervised_environment(settings)
            start_supervisor(settings, local_programs(settings, PROGRAMS), environment)
            file.write_text(digest)
        start(settings, local_programs(settings, SLOWEST))
        with ThreadPoolExecutor() as pool:
            publication = pool.submit(_publish, settings, say)
            if settings.starts("airflow"):
                _migrate(settings, say)
            start(settings, needed_by_ingest)
            publication.result()
        wait_ready(settings, needed_by_ingest, say)
        start(settings, local_programs(settings, ADDED))
        yield
        wait_ready(settings, local_programs(settings, (*SLOWEST, *ADDED)), say)
    except BaseException:  # also Ctrl-C: no half-started stack stays
        if not was_up:
            end_stack(settings)
        raise


def supervised_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of supervisord and of its programs.

    Raises:
        StackError: There is no server to start as Redis.

    """
    environment = process_environment(settings)
    if settings.starts("redis"):
        environment[REDIS_BINARY] = str(find_server())
    return environment


def _configuration_digest(settings: Settings) -> str:
    """Return a digest of the configuration that programs read when they start."""
    tool_variables = [
        variable
        for variable in sorted(process_environment(settings).items())
        if variable[0].startswith(("AIRFLOW__", "MLFLOW_TRACKING_"))
    ]
    logins = (settings.airflow_password, settings.airflow_token)
    secrets = [login.get_secret_value() for login in logins if login]
    texts = (
        settings.model_dump_json(),  # without secrets
        json.dumps(secrets),
        airflow_config(settings),
        settings.redis_address,
        json.dumps(tool_variables),
        configuration(PROGRAMS),
    )
    return sha256("\n".join(texts).encode()).hexdigest()


def _content(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _stop_outdated(settings: Settings) -> None:
    """Stop the programs that started before the newest change in models/."""
    files = (MODELS, *MODELS.glob("*.toml"))
    changed = max(path.stat().st_mtime for path in files)
    readers = [program for program in PROGRAMS if program.reads_project]
    stop_older(settings, local_programs(settings, readers), changed)


def run(settings: Settings, name: str, arguments: Sequence[str] = ()) -> None:
    """Become the program `name`; `init` prepares once for all other programs.

    Args:
        settings: Settings of the stack.
        name: Name of a program of PROGRAMS, or `worker`, `task`, `init`.
        arguments: Command that `task` runs; no other program has one.

    Raises:
        StackError: No program has the name, or a database, Redis or bucket cannot be reached.

    """
    problems = layout_problems(settings.home) + connection_problems(settings)
    if problems:
        raise StackError("\n".join(problems))
    line = close_home(settings)
    if line:
        print(line)  # noqa: T201  (of a container)
    prepare(settings)
    commands = {program.name: program.command for program in PROGRAMS}
    commands["worker"] = WORKER
    commands[TASK] = shlex.join(arguments)
    if name not in {*commands, INIT}:
        raise StackError(f"expected {INIT}, {', '.join(commands)}; found {name}")
    if bool(arguments) != (name == TASK):
        raise StackError(f"a command is for {TASK} alone: gyre run {TASK} -- COMMAND")
    if name == INIT:
        warning = redis_warning(settings)
        if warning:
            print(warning)  # noqa: T201  (of a container)
        _migrate(settings, print)
        _run_tool(settings, "airflow", "pools", "set", WRITE_POOL, "1", "one writer")
        _publish(settings, print)
        return
    os.chdir(CLONE)
    command = shlex.split(commands[name])
    os.execvpe(command[0], command, process_environment(settings))  # noqa: S606  (no shell)


def _migrate(settings: Settings, say: Callable[[str], None]) -> None:
    """Make or upgrade the tables of Airflow, once for each release and database."""
    file = settings.home / "airflow" / "migrated"
    database = sha256(str(settings.database_url).encode()).hexdigest()
    state = f"{version('apache-airflow')} {database}"
    if _content(file) != state:
        began = time.monotonic()
        _run_tool(settings, "airflow", "db", "migrate")
        file.write_text(state)
        say(f"  airflow db migrate: {time.monotonic() - began:.1f} s")


def _publish(settings: Settings, say: Callable[[str], None]) -> None:
    """Publish all feature definitions; where a module is broken, those of the other modules.

    A team publishes its own repository by itself.
    """
    if settings.feast_repo:
        return
    began = time.monotonic()
    try:
        _run_tool(settings, "feast", "apply")
    except StackError as exc:
        from feature_repo.datasets import load_datasets  # noqa: PLC0415  (seconds)
        from feature_repo.published.store import publish_beside  # noqa: PLC0415

        datasets, broken = load_datasets()
        publish_beside(settings, *datasets)
        problems = broken or [str(exc)]  # a helper that no dataset imports is broken
        say("\n".join(f"    not published: {problem}" for problem in problems))
    say(f"  features (feast apply): {time.monotonic() - began:.1f} s")


def _run_tool(settings: Settings, tool: str, *arguments: str) -> None:
    """Run a tool's own command in the folder of feature definitions; its output is in logs/TOOL.log."""
    with (settings.home / "logs" / f"{tool}.log").open("a") as log:
        result = subprocess.run(
            [Path(sys.executable).parent / tool, *arguments],
            cwd=PROJECT / "feature_repo",
            env=process_environment(settings),
            stdout=log,
            stderr=log,
            check=False,
        )
    if result.returncode:
        command = " ".join((tool, *arguments))
        lines = last_lines(settings, tool)
        raise StackError(f"{command} failed ({result.returncode}):\n{lines}")
