"""The views that a feature service reads: the one answer for training, ingest and serving."""

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import feast
from feast.errors import FeastObjectNotFoundException

from core.errors import DataError


@dataclass(frozen=True)
class ServiceViews:
    """Views of a feature service.

    Attributes:
        on_demand: Its on-demand views.
        stored: Views that it or an on-demand view reads. The projection of each holds all
            features that are read of it.

    """

    on_demand: list[Any]
    stored: list[Any]


def service_views(store: feast.FeatureStore, service: feast.FeatureService) -> ServiceViews:
    """Resolve the views of `service` in the registry of `store`.

    Raises:
        DataError: One of them is not published.

    """
    on_demand: list[Any] = []
    stored: dict[str, Any] = {}
    projections = deque(service.feature_view_projections)
    while projections:
        projection = projections.popleft()
        view = _view(store, projection)
        if isinstance(view, feast.OnDemandFeatureView):
            on_demand.append(view)
            projections.extend(view.source_feature_view_projections.values())
            continue
        name = projection.name_to_use()
        if name in stored:
            fields = [*stored[name].projection.features, *projection.features]
            view.projection.features = list({field.name: field for field in fields}.values())
        stored[name] = view
    return ServiceViews(on_demand, [*stored.values()])


def _view(store: feast.FeatureStore, projection: Any) -> Any:
    name = projection.name
    with published(f"view {name!r}"):
        view = store.registry.get_any_feature_view(name, store.project, allow_cache=True)
    view = copy.copy(view)
    view.projection = copy.copy(projection)
    return view


@contextmanager
def published(title: str) -> Iterator[None]:
    """Raise DataError with the remedy where Feast's registry does not know what `title` names."""
    try:
        yield
    except FeastObjectNotFoundException as exc:
        raise DataError(f"{title} is not published: cd feature_repo && feast apply") from exc
