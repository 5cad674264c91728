"""All that a dataset's source holds, in a home of its own: what a backtest walks through."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from feature_repo.features import raw_table
from feature_repo.ingest import land_all
from feature_repo.source import pull, shift_file
from feature_repo.store import publish_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from feature_repo.definition import Dataset
    from stack.settings import Settings

FAR = datetime(9999, 1, 1, tzinfo=UTC)


@contextmanager
def whole_history(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
    part: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> Iterator[tuple[Settings, datetime]]:
    """Give settings of a temporary home that holds the history, and its last event.

    Of the shipped file the days that lie ahead too; of any other source what it holds at `as_of`.
    part: chooses the rows to go on with.
    A row counts as known from its event time on: a source does not say when it came.

    Raises:
        DataError: the source cannot be read, or its rows broke a rule as a whole.

    """
    shipped = dataset.name not in settings.sources
    with TemporaryDirectory(prefix="gyre-history-") as name:
        beside = settings.model_copy(update={"home": Path(name)})
        if (dates := shift_file(settings)).exists():
            beside.data.mkdir()
            shutil.copy(dates, shift_file(beside))
        rows = part(pull(beside, dataset, FAR if shipped else as_of))
        until = pc.max(rows[dataset.event_time]).as_py() if shipped else as_of
        land_all(beside, dataset, rows, until)
        publish_beside(beside, dataset)
        newest = raw_table(beside, dataset).newest(dataset.event_time)
        yield beside, min(until, newest or until)
