"""Intervals of materialisation in Feast's registry: those of refreshes, and those by hand.

`feast materialize-incremental` goes on from the last interval. After a `feast materialize` by hand
the next refresh writes all values.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from redis.exceptions import RedisError

from core.errors import FeaturesUnavailableError
from core.settings import Settings
from core.timestamps import BEGINNING
from feature_engine.online.redis_rows import connect_redis
from feature_engine.online.state import OnlineState, read_state, replace_state
from feature_repo.definition import Dataset
from feature_repo.published.redis_names import state_key
from feature_repo.published.store import WRITE_DEADLINE, open_store


def record_intervals(settings: Settings, dataset: Dataset) -> None:
    """Record in Feast's registry up to when a dataset's views are online."""
    store = open_store(settings)
    with _connected(settings) as redis:
        for name in dataset.views:
            state = read_state(redis, state_key(store.project, name))
            view = store.get_feature_view(name)
            start = view.most_recent_end_time or BEGINNING
            if state and state.time and start < state.time:
                store.registry.apply_materialization(
                    view, store.project, start, state.time
                )


def notice_materialization_by_hand(settings: Settings, dataset: Dataset) -> None:
    """Let the next refresh write all values of views whose last interval is not of a refresh."""
    store = open_store(settings)
    with _connected(settings) as redis:
        for name in dataset.views:
            key = state_key(store.project, name)
            state = read_state(redis, key)
            intervals = store.get_feature_view(name).materialization_intervals
            if state and intervals and intervals[-1][1] != state.time:
                replace_state(redis, key, state, OnlineState(time=state.time))


@contextmanager
def _connected(settings: Settings) -> Iterator[Any]:
    """Give a client of Redis; raise FeaturesUnavailableError where Redis does not answer."""
    try:
        with closing(connect_redis(settings.redis_address, WRITE_DEADLINE)) as redis:
            yield redis
    except RedisError as exc:
        raise FeaturesUnavailableError(f"Redis: {exc}") from exc
