"""Rows that views say are online, looked up there: an online store may lose some without a word.

A Redis that evicts keys does, and so does one that is restored from an older file.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import ibis

from core.settings import Settings
from feature_repo.definition import Dataset
from feature_repo.engines import engine_connection, read_files
from feature_repo.features import raw_table
from feature_repo.online_state import OnlineState
from feature_repo.online_values import OnlineValues
from feature_repo.online_writer import KeyValues, key_values
from feature_repo.views import ViewTable, view_tables

KNOWN_KEYS = 700
"""Keys of each view that are looked up: 1 % lost is found 999 times in 1,000 (1 - 0.99^700)."""
REDIS_SECONDS = 5.0


@dataclass(frozen=True)
class LookedUpView:
    """What was found of a view's known keys.

    Attributes:
        view: Its name.
        keys: How many keys were looked up.
        lost: How many of these have no row online, or not all of its fields.
        problem: Why nothing was looked up; empty where it was.

    """

    view: str
    keys: int = 0
    lost: int = 0
    problem: str = ""


def look_up_known_keys(
    settings: Settings, dataset: Dataset, views: Sequence[str]
) -> list[LookedUpView]:
    """Look up a sample of the keys that are online by what is on record.

    Args:
        settings: Of the installation.
        dataset: Which makes the views.
        views: Names of some of its views.

    Raises:
        RedisError: Redis does not answer.

    """
    raw = raw_table(settings, dataset)
    with closing(OnlineValues(settings, dataset, raw, REDIS_SECONDS)) as online:
        return [
            _look_up(settings, view, online)
            for view in view_tables(settings, dataset, raw)
            if view.name in views
        ]


def _look_up(settings: Settings, view: ViewTable, online: OnlineValues) -> LookedUpView:
    state = online.state(view.name)
    if state is None and view.table.names():
        return LookedUpView(view.name, keys=1, lost=1)  # with the note, all is lost
    if state is None or state.version is None or state.time is None:
        return LookedUpView(view.name, problem="its rows are not online yet")
    if view.is_redefined():
        return LookedUpView(view.name, problem="its expression has changed")
    keys = _known_keys(settings, view, online, state)
    lost_keys = online.lost_keys(view.name, keys)
    # The consumer may have deleted a key that the table still has.
    lost_keys -= online.keys_of_consumer(view.name, sorted(lost_keys))
    return LookedUpView(view.name, keys=len(keys), lost=len(lost_keys))


def _known_keys(
    settings: Settings, view: ViewTable, online: OnlineValues, state: OnlineState
) -> list[KeyValues]:
    """Return keys whose newest row is online, and is young enough, chosen by chance.

    They are in the version of the table that is online, and in the newest one.
    """
    feast_view = online.views[view.name]
    names = sorted(feast_view.join_keys)
    with engine_connection(settings) as connection:
        versions = []
        for version in (state.version, view.table.version):
            rows = read_files(connection, view.table, view.table.names(version))
            due = rows.filter(rows.event_timestamp <= ibis.literal(state.time))
            versions.append(due)
        online_rows, current_rows = versions
        if feast_view.ttl:
            oldest = ibis.literal(state.time - feast_view.ttl)
            current_rows = current_rows.filter(current_rows.event_timestamp >= oldest)
        known = online_rows.select(names).distinct().semi_join(current_rows, names)
        chosen = known.order_by(ibis.random()).limit(KNOWN_KEYS)
        return key_values(feast_view, connection.to_pyarrow(chosen))
