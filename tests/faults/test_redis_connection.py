"""A connection that is slow, cut, split or garbled: no answer, never somebody else's."""

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
from serving.redis_reader import RedisReader
from tests.conftest import at_most, redis_server, unused_port
from tests.serving.conftest import contract
from tests.serving.shop import (  # noqa: F401  (fixtures)
    NOON,
    PERSON,
    PLAIN,
    features,
    online,
    people,
    stocked,
    template,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:On demand feature view is an experimental"
)
PASSWORD = "p@ss:w/rd %"


class Proxy:
    """Passes bytes on to Redis; `answer` may change, delay or lose those that come back."""

    def __init__(self, port):
        self.target = port
        self.port = unused_port()
        self.opened = 0
        self.seconds = 0

    async def answer(self, data, writer):
        await asyncio.sleep(self.seconds)
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
            back.transport.abort()
            writer.transport.abort()

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


class Unreliable(Proxy):
    """In two pieces; now and then late, cut off in the middle, or with bytes that are no reply."""

    async def answer(self, data, writer):
        chance = random.random()
        middle = random.randrange(len(data))
        if chance < 0.1:
            await asyncio.sleep(random.choice([0.02, 0.06, 0.1]))
        elif chance < 0.15:
            writer.write(data[:middle])
            writer.transport.abort()
            return
        elif chance < 0.2:
            data += b"?"
        with suppress(ConnectionError):
            writer.write(data[:middle])
            await asyncio.sleep(0)
            writer.write(data[middle:])


@asynccontextmanager
async def through(proxy, shop):
    async with (
        proxy.running() as address,
        shop.source("plain", PLAIN, redis_url=address) as source,
    ):
        yield source


def test_an_unreliable_connection_returns_no_values_of_another_customer(stocked):
    customers = range(100, 160)
    expected = {n: {"count": n, "amount": n / 2, "name": f"no {n}"} for n in customers}
    for n, row in expected.items():
        stocked.write(PERSON, {"customer_id": n}, row)
    random.seed(7)
    proxy = Unreliable(stocked.settings.redis_port)
    origins = []
    wrong = []

    def fewest():
        """Of what has to be seen: answers of both kinds, and new connections."""
        return min(origins.count("online"), origins.count("cache"), proxy.opened)

    async def ask(source):
        read_count = 0
        while read_count < 30 or fewest() <= 5:
            read_count += 1
            keys = random.choices(customers, k=random.choice([1, 1, 3, 20]))
            rows, origin = await source.read(people(*keys), [NOON] * len(keys))
            origins.append(origin)
            for key, row in zip(keys, features(rows), strict=True):
                is_unknown = row is None and origin != "online"
                if row != expected[key] and not is_unknown:
                    wrong.append((row, key))
            await asyncio.sleep(random.random() / 100)

    async def probe(source):
        while True:
            await source.probe()
            await asyncio.sleep(0.02)

    async def read():
        async with through(proxy, stocked) as source, asyncio.timeout(600):
            probing = asyncio.create_task(probe(source))
            await asyncio.gather(*(ask(source) for _ in range(12)))
            probing.cancel()
            await asyncio.wait([probing])  # so that what it was opening is closed

    uvloop.run(read())
    assert wrong[:3] == []


@pytest.mark.timed
def test_a_late_answer_is_dropped_and_reaches_no_other_request(stocked):
    proxy = Proxy(stocked.settings.redis_port)
    proxy.seconds = 0.02

    async def read():
        async with through(proxy, stocked) as source:
            known = await online(source, people(-3, -2))
            proxy.seconds = 0.3
            began = time.monotonic()
            answers = await asyncio.gather(
                *(source.read(people(n), [NOON]) for n in (-3, -2, 0))
            )
            assert time.monotonic() - began < at_most(0.25)
            assert [origin for _, origin in answers] == ["cache"] * 3
            rows = [features(rows) for rows, _ in answers]
            assert rows == [[known[0]], [known[1]], [None]]
            assert source.problem == "Redis: no answer within 50 ms"
            proxy.seconds = 0
            rows = await online(source, people(0, -3, -2))
            assert (rows[1:], source.down) == (known, None)
            assert rows[0]["count"] == 300

    uvloop.run(read())


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A Redis with passwords, and a certificate for its address."""
    folder = tmp_path_factory.mktemp("guarded")
    port = unused_port()
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-keyout key.pem -out cert.pem -subj /CN=redis -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    with redis_server(port, folder):
        redis = Redis(port=port, db=3)
        (view,) = contract().lookup.views
        redis.set(view.state, json.dumps({"time": NOON.isoformat()}))
        user = ("ACL", "SETUSER", "reader", "on", f">{PASSWORD}", "~*", "+@all")
        redis.execute_command(*user)
        redis.config_set("requirepass", PASSWORD)
        redis.close()
        yield port, folder / "cert.pem", secure


async def probed(address):
    """Return the time of the features; a deadline may pass for want of a core, then again."""
    redis = RedisReader(address, contract().lookup, ())
    try:
        while True:
            try:
                return await redis.probe()
            except FeaturesUnavailableError as exc:
                if not str(exc).endswith(" ms"):
                    raise
    finally:
        await redis.close()


def test_the_user_password_database_and_tls_of_the_address_are_used(
    guarded, monkeypatch
):
    port, certificate, secure = guarded
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    password = quote(PASSWORD, safe="")

    async def read():
        async with Proxy(port).running(secure) as with_tls:
            for url in (f"redis://127.0.0.1:{port}", with_tls):
                for user in ("", "reader"):
                    address = url.replace("://", f"://{user}:{password}@")
                    assert await probed(f"{address}/3") == NOON

    uvloop.run(read())


def test_a_refused_connection_names_the_reason_without_the_password(guarded):
    port, _, secure = guarded

    async def read():
        async with Proxy(port).running(secure) as with_tls:
            for address, reason in (
                (f"redis://:wrong@127.0.0.1:{port}", "invalid username-password pair"),
                (f"redis://127.0.0.1:{port}/3", "Authentication required"),
                (with_tls, "certificate verify failed"),
            ):
                with pytest.raises(FeaturesUnavailableError, match=reason) as refusal:
                    await probed(address)
                assert "word wrong" not in str(refusal.value)

    uvloop.run(read())
