"""What it costs to read online features: directly, raw by redis-py, and by Feast's own reader.

    GYRE_HOME=… python -m benchmarks.reader

Reads the default model's features of random customers from the Redis of the stack at GYRE_HOME,
which must be up. Microseconds a key, the least of seven rounds: of the clock, and of this process's
processor time, which other work on the machine disturbs less. redis-py gets the same commands and
decodes nothing; the others end with the same rows.
"""

from __future__ import annotations

import gc
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import redis.asyncio
import uvloop

from feature_repo.online import OnlineFeatures
from feature_repo.plan_writer import ensure_plan
from feature_repo.serving_plan import load_plan
from serving.features import FeatureSource
from serving.reader import DirectReader
from stack.settings import load_settings
from stack.spec import load_spec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUNDS, CUSTOMERS = 7, 20_000
SIZES = {1: 1_000, 16: 300, 500: 20}
"""Keys of one read, and reads of a round."""


def some(count: int) -> list[dict[str, int | str]]:
    return [{"customer_id": random.randrange(1, CUSTOMERS)} for _ in range(count)]  # noqa: S311


async def measure(what: str, read: Callable[[list[Any]], Awaitable[Any]]) -> None:
    for size, reads in SIZES.items():
        found = []
        for _ in range(ROUNDS):
            batches = [some(size) for _ in range(reads)]
            clock, work = time.perf_counter(), time.process_time()
            for keys in batches:
                await read(keys)
            spent = time.perf_counter() - clock, time.process_time() - work
            found.append([1e6 * seconds / (reads * size) for seconds in spent])
        clock, work = (min(column) for column in zip(*found, strict=True))
        print(f"{what:24} {size:4} keys a read: {clock:6.1f} µs a key, {work:6.1f} of work")


async def main() -> None:
    settings = load_settings()
    spec, now = load_spec(settings.default_model), datetime.now(UTC)
    service, names = spec.feature_service, tuple(spec.features)
    ensure_plan(settings, service)
    source, feast = (
        FeatureSource(settings, service, names),
        OnlineFeatures(settings, service, names),
    )
    raw = redis.asyncio.Redis.from_url(settings.redis_address)
    await source.probe()
    if source.problem or source.fallback:
        raise SystemExit(source.problem or source.fallback)
    plan = load_plan(settings, service)
    commands = DirectReader(plan, names)

    async def direct(keys: list[Any]) -> None:
        await source.read(keys, [now] * len(keys))

    async def by_redis_py(keys: list[Any]) -> None:
        async with raw.pipeline(transaction=False) as pipe:
            for asked in commands.commands(keys):
                pipe.execute_command(
                    *asked.split(b"\r\n")[2::2]
                )  # a name with a line's end: as fast
            await pipe.execute()

    async def by_feast(keys: list[Any]) -> None:
        feast.read(keys, now)

    gc.collect()
    gc.freeze()
    await measure("direct", direct)
    await measure("redis-py, not decoded", by_redis_py)
    await measure("Feast's own reader", by_feast)
    await source.close()
    await raw.aclose()
    feast.close()


if __name__ == "__main__":
    uvloop.run(main())
