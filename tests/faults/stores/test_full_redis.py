"""A disk under Redis' file that is full, or slow: what serving has acknowledged survives a kill."""

import asyncio
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from redis import Redis

from core.errors import BrokerUnavailableError
from feature_engine.events.interface import Record
from feature_engine.events.redis_broker import RedisIntake
from feature_repo.online_store import find_server
from stack.redis_file import remove_copies, without_holes
from tests.conftest import new_settings, unused_port, wait_until
from tests.support.tools.small_disk import fill, small_disk

STREAM = "gyre:events:orders"
EVENTS = b'[{"note": "' + b"n" * 900 + b'"}]'
SLOW_SYNC = """
#include <unistd.h>
#include <sys/syscall.h>
int fdatasync(int file) { usleep(MICROSECONDS); return syscall(SYS_fdatasync, file); }
int fsync(int file) { usleep(MICROSECONDS); return syscall(SYS_fsync, file); }
"""
"""A library that makes the disk of the program that loads it slow."""


class Store:
    """A Redis as `gyre up` starts it, with its file on a small disk."""

    def __init__(self, disk, port):
        self.folder = disk / "redis"
        self.folder.mkdir()
        self.port = port
        self.settings = new_settings(disk, redis_url=f"redis://127.0.0.1:{port}/0")
        self.redis = Redis(port=port)

    def start(self, **environment):
        command = [
            sys.executable, "-m", "stack.redis_file", str(self.folder), str(find_server()),
            "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder),
            "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env=os.environ | environment
        )
        wait_until("Redis", self.answers)

    def mend(self):
        """Return what is said where no Redis is to be started."""
        return subprocess.check_output(
            [sys.executable, "-m", "stack.redis_file", str(self.folder)],
            env=os.environ | {"GYRE_REDIS_URL": self.settings.redis_url},
            text=True,
        )

    def answers(self):
        assert self.process.poll() is None, "Redis has ended"
        with suppress(Exception):
            return self.redis.ping()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def put(self, count):
        """Return the ids of the requests that were acknowledged."""

        async def put_all():
            ids = []
            intake = RedisIntake(self.settings)
            for _ in range(count):
                with suppress(BrokerUnavailableError):
                    ids.append(await intake.put("orders", [Record(b"", EVENTS)]))
            await intake.close()
            return ids

        return asyncio.run(put_all())

    def ids(self):
        return {key.decode() for key, _ in self.redis.xrange(STREAM)}

    def can_write(self):
        return self.redis.info("persistence")["aof_last_write_status"] == "ok"


@pytest.fixture
def store(tmp_path):
    with small_disk(tmp_path, megabytes=4) as disk:
        store = Store(disk, unused_port())
        store.start()
        try:
            yield store
        finally:
            store.kill()


@pytest.mark.parametrize("is_rewritten", [False, True])
def test_what_is_acknowledged_on_a_filling_disk_survives_a_kill(store, is_rewritten):
    acknowledged = [*store.put(20)]
    for _ in range(3):
        if is_rewritten:
            store.redis.bgrewriteaof()
            wait_until("the rewrite", lambda: not rewrites(store.redis))
        acknowledged += store.put(3)
        filler = fill(store.folder)
        some = store.put(30)
        assert len(some) < 30, "the disk is not full"
        acknowledged += some
        store.kill()
        filler.unlink()
        store.start()
        assert {*acknowledged} <= store.ids()
        acknowledged += store.put(5)


def test_redis_starts_again_after_a_full_disk_and_later_events(store):
    acknowledged = [*store.put(20)]
    for _ in range(3):
        store.redis.bgrewriteaof()
        wait_until("the rewrite", lambda: not rewrites(store.redis))
        acknowledged += store.put(3)  # the last block has room for a part of a write
        filler = fill(store.folder)
        acknowledged += store.put(30)
        filler.unlink()
        wait_until("the next write", store.can_write)
        more = store.put(10)
        assert len(more) == 10
        acknowledged += more
        store.kill()
        store.start()
        assert {*acknowledged} <= store.ids()
    assert [*store.folder.glob("appendonlydir/*.damaged")], "there was no hole"
    remove_copies(store.folder)
    assert not [*store.folder.glob("appendonlydir/*.damaged")]


def test_the_file_of_a_redis_that_others_start_is_mended_while_it_does_not_run(store):
    """As compose does before its Redis starts, at each `up`."""
    store.redis.bgrewriteaof()
    wait_until("the rewrite", lambda: not rewrites(store.redis))
    acknowledged = store.put(3)
    filler = fill(store.folder)
    acknowledged += store.put(30)
    filler.unlink()
    wait_until("the next write", store.can_write)
    acknowledged += store.put(10)
    (file,) = store.folder.glob("appendonlydir/*.incr.aof")
    damaged = file.read_bytes()
    assert not store.mend()
    assert file.read_bytes() == damaged, "the file of a running Redis is changed"
    store.redis.config_set("requirepass", "secret")
    assert not store.mend()
    store.kill()
    assert f"{file}: " in store.mend()
    assert not store.mend()
    assert file.read_bytes() == without_holes(damaged) != damaged
    assert not [*store.folder.glob("appendonlydir/*.damaged")]
    store.start()
    assert {*acknowledged} <= store.ids()


@pytest.mark.parametrize(("seconds", "least_count"), [(0.3, 12), (3, 1)])
def test_what_is_acknowledged_on_a_slow_disk_survives_a_kill(
    tmp_path, seconds, least_count
):
    """While it syncs, Redis answers without having written; after 2 s it writes all the same."""
    store = Store(tmp_path, unused_port())
    store.start(LD_PRELOAD=slow_sync(tmp_path, seconds))
    try:
        acknowledged = [*store.put(1)]
        wait_until("a sync", lambda: syncs(store.redis))
        acknowledged += store.put(4)
        wait_until("the next sync", lambda: syncs(store.redis))
        with ThreadPoolExecutor() as threads:
            for ids in threads.map(store.put, [1] * 8):
                acknowledged += ids
        store.kill()
        store.start()
        assert {*acknowledged} <= store.ids()
        assert len(acknowledged) >= least_count
    finally:
        store.kill()


def slow_sync(folder, seconds):
    """Return the path of SLOW_SYNC; the test is skipped without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = folder / "slow_sync.so"
    microseconds = f"-DMICROSECONDS={seconds * 1_000_000:.0f}"
    subprocess.run(
        [compiler, "-shared", "-fPIC", microseconds, "-o", library, "-x", "c", "-"],
        input=SLOW_SYNC,
        text=True,
        check=True,
    )
    return str(library)


def syncs(redis):
    return redis.info("persistence")["aof_pending_bio_fsync"]


def rewrites(redis):
    state = redis.info("persistence")
    return state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"]


def command(*words):
    parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n%s" % (len(words), b"".join(parts))


@pytest.mark.parametrize("cut", [0, 1, 5, 20, 60, 94])
def test_a_hole_and_the_part_before_it_are_taken_out(cut):
    before = command(b"SET", b"a", b"\0" * 40 + b"*1\r\n") + b"#TS:1\r\n"
    after = command(b"SET", b"b", b"x" * 70)
    assert len(after) > 94
    damaged = before + after[:cut] + bytes(88) + after + before
    assert without_holes(damaged) == before + after + before
    assert without_holes(before + after) == before + after
    assert without_holes(before + after[:cut]) == before + after[:cut]
