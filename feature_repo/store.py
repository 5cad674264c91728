"""Feast's offline side: join features to moments, and fill the online store.

Definitions are published with Feast's own `feast apply` in this folder.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import feast
import yaml
from feast.errors import FeastObjectNotFoundException
from feast.repo_config import RepoConfig

from stack.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from feature_repo.definition import Dataset
    from stack.settings import Settings
    from stack.spec import FeatureType

REPOSITORY = Path(__file__).parent
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
TYPES: dict[str, FeatureType] = {"Int64": "int64", "Float64": "double", "String": "string"}
WRITE_DEADLINE = 10.0
"""Seconds a batch of online writes may take; reads have a deadline of their own."""


def open_store(settings: Settings, deadline: float) -> feast.FeatureStore:
    """Feast as `feature_store.yaml` says, with this installation's paths and addresses."""
    raw: dict[str, Any] = yaml.safe_load((REPOSITORY / "feature_store.yaml").read_text())
    raw["registry"]["path"] = str(settings.home / "feast" / "registry.db")
    raw["online_store"]["connection_string"] = settings.feast_connection(deadline)
    config = RepoConfig(**raw)
    config.repo_path = REPOSITORY
    return feast.FeatureStore(config=config)


class FeatureStore:
    """What ingest and training ask of Feast."""

    def __init__(self, settings: Settings) -> None:
        self._store = open_store(settings, WRITE_DEADLINE)

    def historical(self, service: str, frame: pd.DataFrame) -> pa.Table:
        """Join the features of `service` to each row as they were at its event_timestamp.

        frame: join keys, event_timestamp (UTC), and the request columns of on-demand views
        (`as_of`: int64 microseconds). Rows come back in an order of Feast's choosing.
        """
        job = self._store.get_historical_features(entity_df=frame, features=self._service(service))
        return job.to_arrow()

    def materialise(self, dataset: Dataset, as_of: datetime, since: datetime | None = None) -> None:
        """Bring the dataset's views online up to `as_of`, nothing later.

        since: earliest event time of rows that just landed; rows that are late are older than the
        last materialisation and would be missed by an incremental one.
        """
        for name in dataset.views:
            last = self._view(name).most_recent_end_time
            start = min(last or BEGINNING, since or as_of)
            end = max(as_of, last or as_of)
            if start < end and (since is not None or last is None or last < as_of):
                self._store.materialize(start, end, feature_views=[name])

    def feature_types(self, service: str) -> dict[str, FeatureType]:
        """Names and types of what `service` gives, in its order."""
        return {
            field.name: TYPES[str(field.dtype)]
            for projection in self._service(service).feature_view_projections
            for field in projection.features
        }

    def definition_hash(self, service: str) -> str:
        """SHA-256 of the service's definition: its views, fields, sources and functions."""
        parts = [self._service(service).to_proto().spec.SerializeToString(deterministic=True)]
        for projection in self._service(service).feature_view_projections:
            view = self._store.get_feature_view if self._is_view(projection.name) else None
            found = (view or self._store.get_on_demand_feature_view)(projection.name)
            parts.append(found.to_proto().spec.SerializeToString(deterministic=True))
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def _is_view(self, name: str) -> bool:
        return name in {view.name for view in self._store.list_feature_views()}

    def _view(self, name: str) -> feast.FeatureView:
        try:
            return self._store.get_feature_view(name)
        except FeastObjectNotFoundException as exc:
            raise DataError(
                f"view {name!r} is not published: cd feature_repo && feast apply"
            ) from exc

    def _service(self, name: str) -> feast.FeatureService:
        try:
            return self._store.get_feature_service(name)
        except FeastObjectNotFoundException as exc:
            raise DataError(
                f"feature service {name!r} is not published: cd feature_repo && feast apply"
            ) from exc
