"""A connection that is slow, cut, split or garbled: no answer, never somebody else's."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import subprocess
import time
from contextlib import asynccontextmanager, suppress
from urllib.parse import quote

import pytest
import uvloop
from redis import Redis

from core.errors import FeaturesUnavailableError
from mlflow_server.served_model import LookupSpecification, StoredView
from serving.redis_reader import RedisReader
from tests.conftest import at_most, redis_server, unused_port
from tests.serving.shop import NOON, PLAIN, features, online, people, stocked, template  # noqa: F401

pytestmark = pytest.mark.filterwarnings(
    "ignore:On demand feature view is an experimental"
)
LOOPS = [asyncio.run, uvloop.run]
PASSWORD = "p@ss:w/rd %"
ONLINE = StoredView(
    name="view",
    keys={},
    prefix=b"",
    suffix=b"",
    time=b"",
    state="state",
    ttl_us=0,
    features=(),
)
LOOKUP = LookupSpecification(feast="", online_store="", views=(ONLINE,))


class Proxy:
    """Passes bytes on to Redis; `answer` does what it likes with those that come back."""

    def __init__(self, port):
        self.target, self.port, self.opened = port, unused_port(), 0

    async def answer(self, data, writer):
        writer.write(data)

    async def serve(self, reader, writer):
        self.opened += 1
        there, back = await asyncio.open_connection("127.0.0.1", self.target)

        async def up():
            while data := await reader.read(65_536):
                back.write(data)

        async def down():
            while data := await there.read(65_536):
                await self.answer(data, writer)

        tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for each in (back, writer):
                each.transport.abort()

    @asynccontextmanager
    async def running(self, secure=None):
        server = await asyncio.start_server(
            self.serve, "127.0.0.1", self.port, ssl=secure
        )
        try:
            yield f"redis{'s' if secure else ''}://127.0.0.1:{self.port}"
        finally:
            server.close()
            await asyncio.sleep(0.01)


class Splitting(Proxy):
    async def answer(self, data, writer):
        while data:
            size = random.choice([1, 1, 2, 3, 7, 50])
            writer.write(data[:size])
            data = data[size:]
            await asyncio.sleep(0)


class Slow(Proxy):
    seconds = 0.02

    async def answer(self, data, writer):
        await asyncio.sleep(self.seconds)
        writer.write(data)


class Stalling(Proxy):
    """Is late once, in the middle of what is passed on."""

    passed, late = 0, False

    async def answer(self, data, writer):
        self.passed += len(data)
        if self.passed > 200_000 and not self.late:
            self.late = True
            await asyncio.sleep(0.12)
        with suppress(ConnectionError):
            writer.write(data)


class Unreliable(Proxy):
    """Now and then late, cut off in the middle, or with bytes that are no reply."""

    async def answer(self, data, writer):
        chance = random.random()
        at = random.randrange(len(data))
        if chance < 0.1:
            await asyncio.sleep(random.choice([0.02, 0.06, 0.1]))
        elif chance < 0.15:
            writer.write(data[:at])
            writer.transport.abort()
            return
        elif chance < 0.2:  # bytes that are no reply
            data += b"?"
        with suppress(ConnectionError):
            writer.write(data)


@asynccontextmanager
async def through(proxy, shop):
    async with (
        proxy.running() as address,
        shop.source("plain", PLAIN, redis_url=address) as source,
    ):
        yield source


@pytest.mark.parametrize("run", LOOPS)
def test_answers_split_anywhere_come_to_who_asked(stocked, run):
    keys = people(*range(-4, 1), 5000)  # the next one has 20,000 bytes

    async def read():
        async with through(Splitting(stocked.settings.redis_port), stocked) as source:
            found = await asyncio.gather(*(online(source, [key]) for key in keys * 20))
            return [row for rows in found for row in rows]

    assert run(read()) == stocked.feast("plain", PLAIN, keys, [NOON] * len(keys)) * 20


@pytest.mark.parametrize("run", LOOPS)
def test_on_an_unreliable_line_nobody_is_given_somebody_elses_values(stocked, run):
    customers = range(100, 160)
    for n in customers:
        row = {"count": n, "amount": n / 2, "name": f"customer {n}", "seen_us": 1}
        stocked.write(stocked.store.get_feature_view("person"), {"customer_id": n}, row)
    random.seed(7)
    proxy = Unreliable(stocked.settings.redis_port)
    origins, wrong = [], []

    async def one(source):
        for _ in range(60):
            wanted = random.choices(customers, k=random.choice([1, 1, 3, 20]))
            rows, origin = await source.read(people(*wanted), [NOON] * len(wanted))
            origins.append(origin)
            expected = [
                {"count": n, "amount": n / 2, "name": f"customer {n}"} for n in wanted
            ]
            wrong.extend((row, want) for row, want in zip(features(rows), expected, strict=True)
                         if row != want and (row is not None or origin == "online"))  # fmt: skip
            await asyncio.sleep(random.random() / 100)

    async def read():
        async with through(proxy, stocked) as source:
            probing = asyncio.create_task(_probe(source))
            await asyncio.gather(*(one(source) for _ in range(12)))
            probing.cancel()
            await asyncio.wait([probing])  # so that what it was opening is closed

    run(read())
    assert wrong[:3] == []
    assert min(origins.count("online"), origins.count("cache"), proxy.opened) > 5


async def _probe(source):
    while True:
        await source.probe()
        await asyncio.sleep(0.02)


@pytest.mark.timed
def test_a_late_answer_is_given_up_and_given_to_nobody(stocked):
    proxy = Slow(stocked.settings.redis_port)

    async def read():
        async with through(proxy, stocked) as source:
            known = await online(source, people(-3, -2))
            proxy.seconds = 0.3
            began = time.monotonic()
            found = await asyncio.gather(
                *(source.read(people(n), [NOON]) for n in (-3, -2, 0))
            )
            assert time.monotonic() - began < at_most(0.25)
            assert [origin for _, origin in found] == ["cache"] * 3
            assert [features(rows) for rows, _ in found] == [
                [known[0]],
                [known[1]],
                [None],
            ]
            assert source.problem == "Redis: no answer within 50 ms"
            proxy.seconds = 0
            rows = await online(source, people(0, -3, -2))
            assert (rows[1:], source.down) == (known, None)
            return rows[0]["count"]

    assert asyncio.run(read()) == 300


def test_a_read_that_has_begun_ends_before_its_connection(stocked):
    async def read():
        async with through(Slow(stocked.settings.redis_port), stocked) as source:
            await online(source, people(-3))
            under_way = asyncio.create_task(source.read(people(-2), [NOON]))
            await asyncio.sleep(0)
            await source.close()
            after = await source.read(people(-3), [NOON])
            assert after[1] == "cache"
            return await under_way

    row = {"count": 127, "amount": 1.5, "name": "ü€😀"}
    assert in_time(read) == [row]


def in_time(read):
    """Rows that were read from Redis; a deadline may pass for want of a core, then again."""
    for _ in range(200):
        rows, origin = uvloop.run(read())
        if origin == "online":
            return features(rows)
    raise AssertionError(rows)


def test_a_long_batch_on_a_slow_line_is_read_whole(stocked):
    keys = [*people(*range(-4, 5)), *people(*range(1_000, 10_991))]

    async def read():
        async with through(Slow(stocked.settings.redis_port), stocked) as source:
            began = time.monotonic()
            rows = await online(source, keys)
            assert time.monotonic() - began > 0.2  # far past the deadline of one read
            return rows

    rows = uvloop.run(read())
    assert [row["count"] for row in rows[:9]] == [0, 1, 127, 128, 300, -1, -(2**40), 2**63 - 1,
                                                  -(2**63)]  # fmt: skip
    assert rows[9:] == [None] * 9_991


def test_one_late_answer_of_many_does_not_cost_a_batch_its_values(stocked):
    keys = people(*[-3, -2, 5_000] * 3_000)

    async def read():
        proxy = Stalling(stocked.settings.redis_port)
        async with through(proxy, stocked) as source:
            rows, origin = await source.read(keys, [NOON] * len(keys))
            assert proxy.late
            return rows, origin

    rows = in_time(read)
    assert [row and row["count"] for row in rows] == [1, 127, None] * 3_000


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A Redis with passwords, and a certificate for its address."""
    folder, port = tmp_path_factory.mktemp("guarded"), unused_port()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-days", "2",
         "-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    with redis_server(port, folder):
        redis = Redis(port=port, db=3)
        redis.set("state", json.dumps({"time": NOON.isoformat()}))
        redis.execute_command(
            "ACL", "SETUSER", "reader", "on", f">{PASSWORD}", "~*", "+@all"
        )
        redis.config_set("requirepass", PASSWORD)
        redis.close()
        yield port, folder / "cert.pem", folder / "key.pem"


async def probed(redis):
    """Its answer or its refusal; a deadline may pass for want of a core, then again."""
    while True:
        try:
            return await redis.probe()
        except FeaturesUnavailableError as exc:
            if not str(exc).endswith(" ms"):
                raise


@pytest.mark.parametrize("run", LOOPS)
@pytest.mark.parametrize("user", ["", "reader"])
def test_user_password_database_and_tls_of_the_address_are_used(
    guarded, monkeypatch, user, run
):
    port, certificate, key = guarded
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(certificate, key)

    async def read():
        found = []
        async with Proxy(port).running(secure) as address:
            for each in (f"redis://127.0.0.1:{port}", address):
                who = f"://{user}:{quote(PASSWORD, safe='')}@"
                redis = RedisReader(f"{each.replace('://', who)}/3", LOOKUP, ())
                found.append(await probed(redis))
                await redis.close()
        return found

    assert run(read()) == [NOON] * 2


@pytest.mark.parametrize("run", LOOPS)
def test_who_is_refused_is_told_why_without_the_password(guarded, run):
    port, certificate, key = guarded
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(certificate, key)

    async def refused(address):
        redis = RedisReader(address, LOOKUP, ())
        with pytest.raises(FeaturesUnavailableError) as found:
            await probed(redis)
        await redis.close()
        return str(found.value)

    async def read():
        async with Proxy(port).running(secure) as address:
            return [
                await refused(f"redis://:wrong@127.0.0.1:{port}"),
                await refused(f"redis://127.0.0.1:{port}/3"),
                await refused(address),
                await refused(f"redis://127.0.0.1:{unused_port()}"),
            ]

    wrong, nobody, unknown, closed = run(read())
    assert "invalid username-password pair" in wrong
    assert "word wrong" not in wrong
    assert "Authentication required" in nobody
    assert "certificate verify failed" in unknown
    assert "refused" in closed or "Connect call failed" in closed
