"""A connection that is late, cut, split or garbled: no answer, never somebody else's."""

import asyncio
import json
import random
import ssl
import subprocess
from contextlib import suppress
from urllib.parse import quote

import pytest
import uvloop
from redis import Redis

from core.errors import FeaturesUnavailableError
from serving.features.redis_reader import RedisReader
from tests.conftest import redis_server, unused_port
from tests.serving.conftest import contract
from tests.support.serving.people import (  # noqa: F401  (fixtures)
    NOON,
    PERSON,
    PLAIN,
    features,
    people,
    stocked,
    template,
)
from tests.support.tools.redis_proxy import Proxy

pytestmark = pytest.mark.filterwarnings(
    "ignore:On demand feature view is an experimental"
)
PASSWORD = "p@ss:w/rd %"


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


def test_an_unreliable_connection_returns_no_values_of_another_customer(stocked):
    customers = range(100, 160)
    expected = {n: {"count": n, "amount": n / 2, "name": f"no {n}"} for n in customers}
    for n, row in expected.items():
        stocked.write(PERSON, {"customer_id": n}, row)
    random.seed(7)
    proxy = Unreliable(stocked.settings.redis_port)
    origins = []

    def fewest():
        """Of what has to be seen: answers of both kinds, and new connections."""
        return min(origins.count("online"), origins.count("cache"), proxy.opened)

    async def ask(source):
        while fewest() <= 20:
            keys = random.choices(customers, k=random.choice([1, 1, 3, 20]))
            rows, origin = await source.read(people(*keys), [NOON] * len(keys))
            origins.append(origin)
            for key, row in zip(keys, features(rows), strict=True):
                is_unknown = row is None and origin != "online"
                assert is_unknown or row == expected[key]
            await asyncio.sleep(random.random() / 100)

    async def probe(source):
        while True:
            await source.probe()
            await asyncio.sleep(0.02)

    async def read():
        async with (
            asyncio.timeout(600),
            proxy.running() as address,
            stocked.source("plain", PLAIN, redis_url=address) as source,
        ):
            probing = asyncio.create_task(probe(source))
            await asyncio.gather(*(ask(source) for _ in range(12)))
            probing.cancel()
            await asyncio.wait([probing])  # so that what it was opening is closed

    uvloop.run(read())


@pytest.fixture
def guarded(tmp_path):
    """A Redis with passwords, and a certificate for its address."""
    port = unused_port()
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-keyout key.pem -out cert.pem -subj /CN=redis -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with redis_server(port, tmp_path):
        redis = Redis(port=port, db=3)
        (view,) = contract().lookup.views
        redis.set(view.state, json.dumps({"time": NOON.isoformat()}))
        user = ("ACL", "SETUSER", "reader", "on", f">{PASSWORD}", "~*", "+@all")
        redis.execute_command(*user)
        redis.config_set("requirepass", PASSWORD)
        redis.close()
        yield port, secure


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


def test_all_parts_of_the_address_are_used_and_a_refusal_does_not_name_the_password(
    guarded, monkeypatch, tmp_path
):
    """User, password, database and TLS."""
    port, secure = guarded
    password = quote(PASSWORD, safe="")

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
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
            for url in (f"redis://127.0.0.1:{port}", with_tls):
                for user in ("", "reader"):
                    address = url.replace("://", f"://{user}:{password}@")
                    assert await probed(f"{address}/3") == NOON

    uvloop.run(read())
