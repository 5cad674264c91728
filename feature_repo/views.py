"""The feature views of a service, of datasets and of plain Feast, behind one interface."""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from core.settings import Settings
from core.timestamps import BEGINNING
from feature_repo.datasets import dataset_of
from feature_repo.engine import LateFeatures, feature_engine
from feature_repo.published.service import PublishedService


def require_built(service: PublishedService) -> None:
    """Refuse a service if a view of a dataset was published and not computed since.

    Raises:
        DataError: There is such a view.

    """
    if service.datasets():
        feature_engine().require_built(service)


def entities(
    service: PublishedService,
    key: Collection[str],
    until: datetime | None = None,
    limit: int | None = None,
    since: datetime | None = None,
) -> pa.Table:
    """Return entities that have a row in a view; entities with the newest rows are first.

    Args:
        service: The feature service.
        key: Join keys of the entities.
        until: Time up to which rows count, aware UTC; None: now.
        limit: Largest number of entities.
        since: Time after which rows count, aware UTC; None: all rows count.

    Returns:
        The columns `key`; no rows if the views do not have these keys.

    """
    own_views = {}
    own_keys: set[str] = set()
    for name, join_keys in service.join_keys.items():
        if dataset_of(name):
            own_views[name] = join_keys
            own_keys.update(join_keys)
    if own_keys.issuperset(key):
        settings = service.settings
        return feature_engine().entities(settings, own_views, key, until, limit, since)
    for view in service.stored:
        if {*view.join_keys}.issuperset(key):
            return _newest_entities(service, view, key, until, limit, since)
    return pa.table({name: [] for name in key})


def _newest_entities(
    service: PublishedService,
    view: Any,
    key: Collection[str],
    until: datetime | None,
    limit: int | None,
    since: datetime | None,
) -> pa.Table:
    """Ask Feast's offline store for the newest row of each entity."""
    source = view.batch_source
    columns = {feature: column for column, feature in source.field_mapping.items()}
    key_columns = [columns.get(name, name) for name in key]
    job = service.store.provider.offline_store.pull_latest_from_table_or_query(
        config=service.store.config,
        data_source=source,
        join_key_columns=key_columns,
        feature_name_columns=[],
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column or None,
        start_date=since or BEGINNING,
        end_date=until or datetime.now(UTC),
    )
    rows = job.to_arrow().sort_by([(source.timestamp_field, "descending")])
    return rows.select(key_columns).rename_columns([*key]).slice(0, limit)


def late_features(
    settings: Settings,
    service: PublishedService,
    datasets: Iterable[str],
    as_of: datetime,
    age_limit: timedelta,
) -> Iterable[LateFeatures]:
    """Yield the features that are too old, and silent sources.

    Args:
        settings: Settings of the installation.
        service: The feature service of a model.
        datasets: Datasets of the model's spec.
        as_of: Aware UTC.
        age_limit: Greatest age of the features.

    """
    names = {*datasets, *service.datasets()}
    if names:
        yield from feature_engine().late_features(
            settings, sorted(names), as_of, age_limit
        )
    for view in service.stored:
        # Values of a stream come online by themselves.
        if dataset_of(view.name) is None and not getattr(view, "stream_source", None):
            # Feast's copy of a view in a service lacks the times of its materialisation.
            published = service.store.get_feature_view(view.name)
            yield from _late_view(published, as_of, age_limit)


def _late_view(view: Any, as_of: datetime, limit: timedelta) -> Iterable[LateFeatures]:
    """Yield a problem if a view of plain Feast was not materialised in time."""
    until = view.most_recent_end_time
    hours = limit / timedelta(hours=1)
    words = f"{view.name} was never materialised"
    if until is not None:
        until = until.replace(tzinfo=until.tzinfo or UTC)
        if as_of - until <= limit:
            return
        words = (
            f"{view.name} is materialised up to {until:%Y-%m-%d %H:%M} UTC, at most {hours:g} h "
            "before now are expected"
        )
    yield LateFeatures(
        name=view.name,
        incident=f"{view.name}: not materialised",
        words=words,
        remedy=f"feast materialize-incremental {as_of:%Y-%m-%dT%H:%M:%S} --views {view.name}",
    )
