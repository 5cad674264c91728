"""The state of a view's values in Redis: a value and a sorted set for each view.

The value has the version of the view's table that Redis holds, and the time up to which it is
right, which serving reads. The sorted set holds the keys that the event consumer wrote since the
last refresh, by the version of the raw table that their values are computed from. Each dataset has
a sorted set of keys whose values change by themselves, see `window_ends`.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True)
class OnlineState:
    """The state of a view's values in Redis.

    Attributes:
        version: Version of the view's table whose newest rows are online; None: not known.
        time: Aware UTC, up to when they are online; None while they are written for the first time.
        next: Version that a refresh is writing, or was when it was killed.

    """

    version: int | None = None
    time: datetime | None = None
    next: int | None = None


STATE_JSON = TypeAdapter(OnlineState)


def ahead_key(project: str, view: str) -> str:
    """Return the Redis key of the sorted set of keys that the event consumer wrote."""
    return f"gyre:ahead:{project}:{view}"


def ends_key(project: str, dataset: str) -> str:
    """Return the Redis key of the sorted set of the keys whose windows end."""
    return f"gyre:window-ends:{project}:{dataset}"


def loaded_ends_key(project: str, dataset: str) -> str:
    """Return the Redis key of the hash of the times up to which that set has each view's keys."""
    return f"{ends_key(project, dataset)}:loaded"


def read_state(redis: Any, key: str) -> OnlineState | None:
    """Read a view's state; None: Redis holds no values of the view."""
    text: bytes | None = redis.get(key)
    return None if text is None else STATE_JSON.validate_json(text)


def replace_state(
    redis: Any, key: str, old: OnlineState | None, new: OnlineState
) -> bool:
    """Write a view's state if it is still `old`; return whether it was."""

    def replace(pipe: Any) -> bool:
        is_unchanged = read_state(pipe, key) == old
        pipe.multi()
        if is_unchanged:
            pipe.set(key, STATE_JSON.dump_json(new))
        return is_unchanged

    return bool(redis.transaction(replace, key, value_from_callable=True))
