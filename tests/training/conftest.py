"""The real orders as of START, with features computed and published; no online store needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from feature_repo.datasets import load_dataset
from feature_repo.features import write_views
from feature_repo.ingest import raw_table
from feature_repo.source import pull
from tests.conftest import AS_OF, feast_apply, mlflow_server, new_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from core.settings import Settings

ORDERS = load_dataset("orders")


def installation(home: Path, rows: pa.Table | None = None) -> Settings:
    """An installation that holds `rows` (default: what the demo delivers by AS_OF)."""
    settings = new_settings(home)
    feast_apply(settings)
    rows = pull(settings, ORDERS, AS_OF) if rows is None else rows
    table = raw_table(settings, ORDERS)
    table.merge(rows.append_column("ingested_at", rows["order_ts"]), ORDERS.key, rows.column_names)
    write_views(settings, ORDERS, table)
    return settings


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return installation(tmp_path_factory.mktemp("history"))


@pytest.fixture(scope="session")
def tracked(history: Settings) -> Iterator[Settings]:
    with mlflow_server(history):
        yield history
