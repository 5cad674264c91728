"""The feature engine as the loop sees it: it computes values of views and labels from raw rows.

A team whose feature views are all its own needs none.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import ibis.expr.types as ir
import pyarrow as pa
from upath import UPath

from core.additions import engine_module
from core.errors import DataError
from core.settings import Settings
from core.spec import ModelSpec
from feature_repo.definition import Dataset, Label
from feature_repo.published.service import PublishedService


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """Rows from which labels are made.

    Attributes:
        name: Name of the dataset or of the table, for people.
        remedy: How to get rows if there are none.
        label: The expression over the rows, and when a label is known.
        entity: Column of the rows that names the entity; of several the first.
        event_time: Column of the rows with the time of the event.
        opened: Opens the rows that were known at a moment (aware UTC), of a version of the source;
            None: its newest version, or it has no versions.

    """

    name: str
    remedy: str
    label: Label
    entity: str
    event_time: str
    opened: Callable[[datetime, int | None], AbstractContextManager[ir.Table]]


class RowsResult(NamedTuple):
    """Result of a dataset's rules for its raw rows.

    Attributes:
        words: The result in one sentence.
        rejections: Rules that fail, in words; if there are any, the training stops.
        page: Great Expectations' page of the rows where one fails, HTML.

    """

    words: str
    rejections: tuple[str, ...] = ()
    page: str = ""


class LateFeatures(NamedTuple):
    """A problem of features that are late.

    Attributes:
        name: Name of the dataset, or of the view.
        incident: Cause of the problem, the same text while it lasts.
        words: The problem, for people.
        remedy: A command.
        link: Page of the console; empty: none.

    """

    name: str
    incident: str
    words: str
    remedy: str
    link: str = ""


class FeatureEngine(Protocol):
    """Functions of the module that `core.additions` names as the engine."""

    def dataset_labels(
        self, settings: Settings, dataset: Dataset, name: str
    ) -> LabelSource:
        """Return the source of a dataset's label."""

    def pins(self, settings: Settings, dataset: Dataset) -> dict[str, str]:
        """Return tags of a run that pin the raw table of a dataset as it is now."""

    def complete_until(self, settings: Settings, dataset: Dataset) -> datetime:
        """Return up to when the rows of a dataset are known, aware UTC."""

    def validate_rows(
        self, settings: Settings, dataset: Dataset, version: int, as_of: datetime
    ) -> RowsResult:
        """Apply the rules of a dataset to the raw rows of a version."""

    def require_built(self, service: PublishedService) -> None:
        """Refuse a service if a view of a dataset was published and not computed since."""

    def entities(
        self,
        settings: Settings,
        views: Mapping[str, Iterable[str]],
        key: Iterable[str],
        until: datetime | None = None,
        limit: int | None = None,
        since: datetime | None = None,
    ) -> pa.Table:
        """Return entities that have a row in one of some views, those of the newest rows first."""

    def arrived_features(
        self, service: PublishedService, questions: pa.Table
    ) -> pa.Table:
        """Compute features from the raw rows that had arrived by a moment."""

    def late_features(
        self,
        settings: Settings,
        datasets: Iterable[str],
        as_of: datetime,
        age_limit: timedelta,
    ) -> Iterator[LateFeatures]:
        """Yield the problems of datasets whose features are too old, or whose source is silent."""

    def lost_rows(
        self, settings: Settings, dataset: Dataset, name: str
    ) -> tuple[int, int]:
        """Return how many keys of a view were looked up online, and how many have no row."""

    def check_datasets(
        self, settings: Settings, spec: ModelSpec, as_of: datetime
    ) -> tuple[list[str], str]:
        """Return findings on the datasets of a model, and a line on whether rows were checked."""

    def spark_connection(self, master: str, scratch: UPath) -> Any:
        """Connect to Spark, where GYRE_ENGINE says so."""


def feature_engine() -> FeatureEngine:
    """Return the feature engine.

    Raises:
        DataError: This installation has none.

    """
    module = engine_module()
    if module is None:
        raise DataError("datasets need the package feature_engine, which is not here")
    return cast("FeatureEngine", import_module(module))
