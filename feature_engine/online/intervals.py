"""Intervals of materialization in Feast's registry, from refreshes and from Feast's own command.

`feast materialize-incremental` goes on from the last interval. After a `feast materialize` by hand
the next refresh writes all values.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from core.errors import FeaturesUnavailableError
from core.timestamps import BEGINNING
from feature_engine.online.state import OnlineState, replace_state
from feature_engine.online.values import OnlineValues
from feature_repo.published.redis_names import state_key


def record_intervals(online: OnlineValues) -> None:
    """Record in Feast's registry up to when the views of a dataset are online."""
    store = online.store
    with _redis_errors():
        for name in online.dataset.views:
            state = online.state(name)
            view = store.get_feature_view(name)
            start = view.most_recent_end_time or BEGINNING
            if state and state.time and start < state.time:
                store.registry.apply_materialization(
                    view, store.project, start, state.time
                )


def notice_materialization_by_hand(online: OnlineValues) -> None:
    """Let the next refresh write all values of views whose last interval is not from a refresh."""
    store = online.store
    with _redis_errors():
        for name in online.dataset.views:
            state = online.state(name)
            intervals = store.get_feature_view(name).materialization_intervals
            if state and intervals and intervals[-1][1] != state.time:
                key = state_key(store.project, name)
                replace_state(online.redis, key, state, OnlineState(time=state.time))


@contextmanager
def _redis_errors() -> Iterator[None]:
    """Raise FeaturesUnavailableError where Redis does not answer."""
    try:
        yield
    except RedisError as exc:
        raise FeaturesUnavailableError(f"Redis: {exc}") from exc
