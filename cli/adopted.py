"""`gyre new NAME --model`: the spec of a model that was trained elsewhere, from its signature."""

import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ibis
import ibis.expr.types as ir
import pandas as pd

from cli.columns import ask
from core.errors import SettingsError
from core.settings import Settings
from feature_repo.published.service import PublishedService
from feature_repo.team_tables import open_table
from mlflow_server.model.foreign import describe, fetch
from training.stages.dataset import FEWEST_ROWS

EVERY = {
    "month": timedelta(days=31),
    "week": timedelta(days=7),
    "day": timedelta(days=1),
}
"""Length of a snapshot."""
FEWEST_SNAPSHOTS = 8
MOST_SNAPSHOTS = 12
PANDAS_INDEX = "__index_level_"
SURELY_ENOUGH = 2 * FEWEST_ROWS
"""Rows that a test set has at least: snapshots have more and fewer rows than the mean."""
FEW_ROWS = 20
"""The oldest one in so many rows does not count for the length of a snapshot."""
GATES = {"classification": "log_loss", "multiclass": "log_loss", "regression": "rmse"}


def describe_adopted(
    settings: Settings,
    model: str,
    table: str,
    *,
    service: str | None,
    entity: str | None,
    time: str | None,
    outcome: str | None,
) -> dict[str, Any]:
    """Return the variables of templates/adopted.toml.jinja.

    Args:
        settings: Settings of the installation.
        model: A folder, or an address of MLflow: `runs:/…`, `models:/NAME/7`.
        table: Address of the table with labels.
        service: Service of Feast that has the features; None: the table has them.
        entity: Column of the entity's key; None: a terminal asks.
        time: Column with the moment that features are read for; None: likewise.
        outcome: Column with the label; empty: there is none; None: likewise.

    Raises:
        SettingsError: The model has no names of inputs, or the table lacks a column.
        GyreError: Model or table cannot be read.

    """
    with TemporaryDirectory(prefix="gyre-new-") as folder:
        inputs = describe(fetch(settings.mlflow_address, model, Path(folder))).inputs
    if not inputs:
        raise SettingsError(
            f"--model: {model}: its signature has no names of inputs: expected columns, or [features] "
            "that you write"
        )
    keys: dict[str, str] = {}
    features: dict[str, str] = dict(inputs)
    if service:
        published = PublishedService(settings, service)
        keys = published.key_types
        features |= {
            name: kind for name, kind in published.features.items() if name in inputs
        }
    connection = ibis.duckdb.connect()
    try:
        rows = open_table(connection, table)
        missing = [name for name in inputs if name not in rows.columns]
        if missing and not service:
            raise SettingsError(
                f"--from: expected a column for each input of the model, no {', '.join(missing)}: "
                "found in a feature service? --service names it"
            )
        own_columns = rows.drop(*[name for name in inputs if name in rows.columns])
        roles = _roles(own_columns, entity=entity, time=time, outcome=outcome)
    finally:
        connection.disconnect()
    return {
        "model": model,
        "table": table,
        "service": service,
        "features": features,
        "metric": GATES[roles["task"]],
        "entity_key": keys or {roles["entity"]: roles["entity_type"]},
        **roles,
    }


def _roles(
    rows: ir.Table, *, entity: str | None, time: str | None, outcome: str | None
) -> dict[str, Any]:
    """Return which column is what, the task that the label has, and the length of snapshots."""
    kinds = rows.schema()
    keys = [
        name for name, kind in kinds.items() if kind.is_integer() or kind.is_string()
    ]
    times = [
        name for name, kind in kinds.items() if kind.is_timestamp() or kind.is_date()
    ]
    entity = _column("--entity", entity, "column of the entity's key", keys)
    words = "column with the moment that features are read for"
    time = _column("--time", time, words, times)
    others = [
        name
        for name in kinds
        if name not in (entity, time) and not name.startswith(PANDAS_INDEX)
    ]
    task = "classification"
    classes: list[str] = []
    if outcome != "":
        words = "column with the label ('' if there is none)"
        outcome = _column("--outcome", outcome, words, others)
        task, classes = _task(rows[outcome])
    moments = pd.to_datetime(rows[time].execute()).dropna().sort_values()
    if moments.empty:
        raise SettingsError(f"--from: expected rows with a {time}, found none")
    # Of a few old rows there would be snapshots without a row.
    few = len(moments) // FEW_ROWS
    span = moments.iloc[-1] - moments.iloc[few]
    every = next(
        (name for name, length in EVERY.items() if span >= FEWEST_SNAPSHOTS * length),
        "day",
    )
    snapshot_count = max(1, span // EVERY[every])
    rows_of_one = (len(moments) - few) / snapshot_count
    fewest = math.ceil(SURELY_ENOUGH / rows_of_one)
    return {
        "entity": entity,
        "entity_type": "int64" if kinds[entity].is_integer() else "string",
        "time": time,
        "outcome": outcome,
        "task": task,
        "classes": classes,
        "every": every,
        "train": max(fewest, min(MOST_SNAPSHOTS, snapshot_count - fewest - 2)),
        "test": fewest,
    }


def _column(option: str, name: str | None, role: str, names: Sequence[str]) -> str:
    """Return the column that an option names, or the only one there is, or ask."""
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        return ask(option, role, names)
    if name not in names:
        raise SettingsError(
            f"{option}: expected a {role}: {', '.join(names) or 'none'}; found {name}"
        )
    return name


def _task(label: ir.Column) -> tuple[str, list[str]]:
    """Return the task of a label, and the names of its classes, if these are texts."""
    if label.type().is_string():
        names = label.as_table().distinct().dropna().execute()
        return "multiclass", sorted(names.iloc[:, 0])
    if label.type().is_boolean() or label.isin([0, 1]).all().execute():
        return "classification", []
    return "regression", []
