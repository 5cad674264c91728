"""A coroutine begun on the spot: a task only where it waits (asyncio of 3.12 has eager tasks)."""

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any


def begin(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None] | None":
    """Run `work` until it waits; what is left then is a task. Before that, it is in no task."""
    try:
        waits = work.send(None)
    except StopIteration:
        return None
    return asyncio.get_running_loop().create_task(_rest(work, waits))


async def _rest(work: Coroutine[Any, Any, None], waits: Any) -> None:
    await _resumed(work, waits)


@types.coroutine
def _resumed(work: Coroutine[Any, Any, None], waits: Any) -> Generator[Any, Any, None]:
    try:
        yield waits
    except asyncio.CancelledError:
        work.close()
        raise
    except Exception:  # noqa: BLE001, S110  (of the future waited for, which raises it again below)
        pass
    yield from work
