"""Batch scores: what the version in production says of the label's whole population, day by day.

A Delta table, partitioned by model and day (UTC) of `as_of`. A day is put there in one commit, in
place of what an earlier run left of it: killed anywhere and run again, each entity is there once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime  # noqa: TC003  (pydantic reads the annotations)
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from mlflow_server.registry import Registry
from mlflow_server.served_model import rounded
from stack.errors import DataError, RegistryError
from stack.spec import entity_text
from stack.storage import Table
from training.evaluate import as_trained, champion_scores
from training.frame import TIME, population

if TYPE_CHECKING:
    from stack.settings import Settings
    from stack.spec import ModelSpec

SCORES = pa.schema(
    {
        "model": pa.string(), "day": pa.string(), "entity": pa.string(), "version": pa.string(),
        "as_of": TIME, "probability": pa.float64(), "prediction": pa.float64(),
        "features": pa.string(),
    }
)  # fmt: skip
"""day: of `as_of`, like 2026-11-20. Entity as text, features as JSON, as in `predictions`."""
PARTITION = ("model", "day")


@dataclass(frozen=True)
class BatchReport:
    """What was written: `rows` entities; positive: how many of them 1 was said of."""

    model: str
    as_of: datetime
    version: str
    rows: int
    positive: int | None

    def summary(self) -> str:
        said = "" if self.positive is None else f", 1 of {self.positive}"
        return (
            f"{self.model} version {self.version}: {self.rows} entities scored as of "
            f"{self.as_of:%Y-%m-%d %H:%M} UTC{said}"
        )

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"as_of": self.as_of.isoformat()}


def scores(settings: Settings) -> Table:
    return Table(settings.data / "scores", SCORES)


def score_population(settings: Settings, spec: ModelSpec, as_of: datetime) -> BatchReport:
    """Score every member of the population at `as_of`, with features as they were then.

    The version's own features and threshold count, whatever the spec says by now. Nothing is
    promoted, told or started by it.

    Raises:
        RegistryError: nothing is in production, or its files are gone or damaged.
        DataError: nobody is in the population, or another process held the table for a minute.

    """
    registry, dataset = Registry(settings), load_dataset(spec.dataset)
    version = registry.production(spec.name)
    if version is None:
        raise RegistryError(
            f"{spec.name}: nothing is in production to score with; run: gyre train {spec.name}"
        )
    own = as_trained(spec, registry.served(registry.version(spec.name, version))[0])
    if raw_table(settings, dataset).version < 0:
        raise DataError(f"{dataset.name}: no rows yet; run: gyre ingest {dataset.name}")
    frame = population(settings, own, dataset, as_of)
    scored = champion_scores(settings, own, version, frame)
    rows = _rows(own, version, as_of, frame, scored.scores.tolist(), scored.threshold)
    scores(settings).replace(rows, PARTITION)
    positive = None if scored.threshold is None else int(sum(rows["prediction"].to_pylist()))
    return BatchReport(spec.name, as_of, version, rows.num_rows, positive)


def _rows(
    spec: ModelSpec,
    version: str,
    as_of: datetime,
    frame: pa.Table,
    raw: list[float],
    threshold: float | None,
) -> pa.Table:
    """Say of each row of `frame` what serving would answer."""
    said, n = rounded(raw, threshold), frame.num_rows
    keys, inputs = (frame.select(list(of)).to_pylist() for of in (spec.entity_key, spec.features))
    columns: dict[str, Any] = {
        "model": [spec.name] * n,
        "day": [f"{as_of:%Y-%m-%d}"] * n,
        "entity": [entity_text(key) for key in keys],
        "version": [version] * n,
        "as_of": [as_of] * n,
        "probability": [None] * n if threshold is None else said,
        "prediction": said if threshold is None else (said >= threshold).astype(float),
        "features": [json.dumps(_without_nan(row)) for row in inputs],
    }
    return pa.table(columns, schema=SCORES)


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no nan: null, as serving logs it."""
    return {name: None if value != value else value for name, value in row.items()}  # noqa: PLR0124
