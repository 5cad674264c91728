"""A training frame of a team's Feast repository: by Feast's own DuckDB store, and by Gyre's join.

    python -m benchmarks.team.frame [label rows, 200,000 if not given]

A parquet file with 50 rows for each of 20,000 keys, a view of three features, and label rows at
moments of their own. Each measurement is a process of its own; the rows of both are compared.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.support.measure import child, median, promised, rounds_of, start, title
from core.settings import Settings

KEYS = 20_000
ROWS_PER_KEY = 50
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource
from feast.types import Float64, Int64

driver = Entity(name="driver", join_keys=["driver_id"])
source = FileSource(path="data/stats.parquet", timestamp_field="event_timestamp")
view = FeatureView(
    name="stats", entities=[driver], ttl=timedelta(days=400), source=source,
    schema=[
        Field(name="a", dtype=Float64),
        Field(name="b", dtype=Float64),
        Field(name="c", dtype=Int64),
    ],
)
service = FeatureService(name="stats_v1", features=[view])
"""
STORE = """
project: bench
provider: local
registry: data/registry.db
offline_store: {type: duckdb}
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
"""
ORDER = ["event_timestamp", "driver_id"]


def prepare(folder: Path, label_count: int) -> None:
    """Write a repository as a team has it, and publish it by Feast's command."""
    (folder / "data").mkdir()
    (folder / "feature_store.yaml").write_text(STORE)
    (folder / "definitions.py").write_text(DEFINITIONS)
    random = np.random.default_rng(1)
    count = KEYS * ROWS_PER_KEY
    start_time = pd.Timestamp("2026-01-01", tz="UTC")

    def times(number: int) -> pd.Series[pd.Timestamp]:
        seconds = pd.Series(random.integers(0, 300 * 86_400, number))
        return start_time + pd.to_timedelta(seconds, unit="s")

    stats = pd.DataFrame({"driver_id": np.arange(count) % KEYS})
    stats = stats.assign(event_timestamp=times(count), a=random.random(count))
    stats = stats.assign(b=random.random(count), c=random.integers(0, 9, count))
    stats.drop_duplicates(ORDER).to_parquet(folder / "data" / "stats.parquet")
    questions = pd.DataFrame({"driver_id": random.integers(0, KEYS, label_count)})
    questions = questions.assign(event_timestamp=times(label_count))
    questions.drop_duplicates(ORDER).to_parquet(folder / "data" / "questions.parquet")
    feast = Path(sys.executable).with_name("feast")
    subprocess.run([feast, "apply"], cwd=folder, check=True, capture_output=True)


def by_gyre(name: str) -> dict[str, float]:
    """Join as a training does."""
    from feature_repo.published.service import PublishedService  # noqa: PLC0415

    folder = Path(name)
    settings = Settings(home=folder / "home", feast_repo=folder)
    service = PublishedService(settings, "stats_v1")
    questions = pd.read_parquet(folder / "data" / "questions.parquet")
    began = time.perf_counter()
    rows = service.historical(questions).to_pandas()
    seconds = time.perf_counter() - began
    rows.sort_values(ORDER, ignore_index=True).to_parquet(folder / "gyre.parquet")
    return {"seconds": seconds}


def by_feast(name: str) -> dict[str, float]:
    """Join by Feast's own store."""
    import os  # noqa: PLC0415

    import feast  # noqa: PLC0415

    folder = Path(name)
    os.chdir(folder)  # the store reads a relative path there
    store = feast.FeatureStore(repo_path=name)
    questions = pd.read_parquet(folder / "data" / "questions.parquet")
    began = time.perf_counter()
    job = store.get_historical_features(
        questions, store.get_feature_service("stats_v1")
    )
    rows = job.to_arrow().to_pandas()
    seconds = time.perf_counter() - began
    rows.sort_values(ORDER, ignore_index=True).to_parquet(folder / "feast.parquet")
    return {"seconds": seconds}


PEERS = {"gyre": by_gyre, "feast": by_feast}


def main(label_count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name:
        folder = Path(name)
        prepare(folder, label_count)
        title(f"{label_count:,} label rows, {ROWS_PER_KEY} rows a key, three features")
        rounds = rounds_of(PEERS, lambda peer: child("team.frame", peer, name))
        times = median(rounds, "feast") / median(rounds, "gyre")
        promised("times Feast's DuckDB store", times, 1, "x", least=True)
        columns = [*ORDER, "a", "b", "c"]
        own = pd.read_parquet(folder / "gyre.parquet")[columns]
        stock = pd.read_parquet(folder / "feast.parquet")[columns]
        differing = int(
            (~(own.eq(stock) | (own.isna() & stock.isna())).all(axis=1)).sum()
        )
        promised("rows that differ", differing, 0, "")


if __name__ == "__main__":
    start(main, 200_000, PEERS)
