"""`gyre new NAME --model`: the spec of a model that was trained elsewhere, from its signature."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ibis
import ibis.expr.types as ir
import pandas as pd

from cli.new.columns import chosen
from core.errors import SettingsError
from core.settings import Settings
from core.spec import InputType
from feature_repo.published.service import PublishedService
from feature_repo.team_tables import open_table
from mlflow_server.model.foreign import class_names, describe, fetch
from training.stages.dataset import FEWEST_ROWS

LENGTHS = {
    "month": timedelta(days=31),
    "week": timedelta(days=7),
    "day": timedelta(days=1),
}
"""Length of a snapshot, the longest first."""
FEWEST_SNAPSHOTS = 8
"""Snapshots that the rows must fill, so that the longer ones are taken."""
MOST_SNAPSHOTS = 12
"""Snapshots that the test set is compared with at most."""
MEAN_ROWS = 2 * FEWEST_ROWS
"""Rows that a test set has on average: so the fewest that it needs are there."""
OLD_SHARE = 20
"""The oldest one in so many rows does not count: of a few old rows there would be empty snapshots."""
PANDAS_INDEX = "__index_level_"
"""Beginning of the column that pandas writes for an index."""
GATES = {"classification": "log_loss", "multiclass": "log_loss", "regression": "rmse"}


@dataclass(frozen=True, kw_only=True)
class AdoptedModel:
    """What the options of `gyre new` say of a model that was trained elsewhere.

    Attributes:
        source: A folder, or an address of MLflow: `runs:/…`, `models:/NAME/7`.
        table: Address of the table with labels.
        service: Service of Feast that has the features; None: the table has them.
        entity: Column of the entity's key; None: a terminal asks.
        time: Column with the moment that features are read for; None: likewise.
        outcome: Column with the label; empty: there is none; None: likewise.

    """

    source: str
    table: str
    service: str | None
    entity: str | None
    time: str | None
    outcome: str | None


def describe_adopted(settings: Settings, model: AdoptedModel) -> dict[str, Any]:
    """Return the variables of templates/adopted.toml.jinja.

    Raises:
        SettingsError: The model has no names of inputs, or the table lacks a column.
        GyreError: Model or table cannot be read.

    """
    inputs, classes = _inputs_and_classes(settings, model.source)
    connection = ibis.duckdb.connect()
    try:
        rows = open_table(connection, model.table)
        input_columns = [name for name in inputs if name in rows.columns]
        if not model.service:
            _require_columns(inputs, input_columns)
        own_columns = rows.drop(*input_columns)
        roles = _roles(own_columns, model, classes)
        snapshots = _snapshots(own_columns, roles["time"])
    finally:
        connection.disconnect()
    features: dict[str, str] = dict(inputs)
    entity_key: Mapping[str, str] = {roles["entity"]: roles["entity_type"]}
    if model.service:
        published = PublishedService(settings, model.service)
        entity_key = published.key_types
        features |= {
            name: kind for name, kind in published.features.items() if name in inputs
        }
    return {
        "model": model.source,
        "table": model.table,
        "service": model.service,
        "features": features,
        "entity_key": entity_key,
        "metric": GATES[roles["task"]],
        **roles,
        **snapshots,
    }


def _inputs_and_classes(
    settings: Settings, source: str
) -> tuple[dict[str, InputType], list[str] | None]:
    """Return name and type of each input of a model, and what `class_names` says of it.

    Raises:
        SettingsError: Its signature has no names.

    """
    with TemporaryDirectory(prefix="gyre-new-") as folder:
        foreign = describe(fetch(settings.mlflow_address, source, Path(folder)))
        inputs = foreign.inputs
        classes = class_names(foreign)
    if not inputs:
        raise SettingsError(
            f"--model: {source}: expected a signature with named columns, found a tensor: write "
            "[features] yourself, in the order of its columns"
        )
    return inputs, classes


def _require_columns(inputs: Mapping[str, InputType], columns: list[str]) -> None:
    missing_columns = [name for name in inputs if name not in columns]
    if missing_columns:
        names = ", ".join(missing_columns)
        raise SettingsError(
            f"--from: expected a column for each input of the model, no {names}: if a feature "
            "service has them, name it by --service"
        )


def _roles(
    rows: ir.Table, model: AdoptedModel, class_names: list[str] | None
) -> dict[str, Any]:
    """Return which column is what, and the task: that of the model, if it says one."""
    kinds = rows.schema()
    keys = [
        name for name, kind in kinds.items() if kind.is_integer() or kind.is_string()
    ]
    times = [
        name for name, kind in kinds.items() if kind.is_timestamp() or kind.is_date()
    ]
    entity = _column("--entity", "column of the entity's key", keys, model.entity)
    time_words = "column with the moment that features are read for"
    time = _column("--time", time_words, times, model.time)
    other_columns = [
        name
        for name in kinds
        if name not in (entity, time) and not name.startswith(PANDAS_INDEX)
    ]
    outcome = model.outcome
    task, classes = _task_of_model(class_names)
    if outcome != "":
        outcome_words = "column with the label ('' if there is none)"
        outcome = _column("--outcome", outcome_words, other_columns, outcome)
        if class_names is None:
            task, classes = _task_of_label(rows[outcome])
    return {
        "entity": entity,
        "entity_type": "int64" if kinds[entity].is_integer() else "string",
        "time": time,
        "outcome": outcome,
        "task": task,
        "classes": classes,
    }


def _column(option: str, role: str, choices: list[str], name: str | None) -> str:
    """Return the column that an option names, or the only one there is, or ask."""
    if name is None and len(choices) == 1:
        return choices[0]
    return chosen(option, role, choices, name)


def _task_of_model(class_names: list[str] | None) -> tuple[str, list[str]]:
    """Return the task of a model, and the names of many classes."""
    if class_names is None:
        return "classification", []
    if len(class_names) > 2:  # noqa: PLR2004  (two classes are 0 and 1)
        return "multiclass", class_names
    return ("classification" if class_names else "regression"), []


def _task_of_label(label: ir.Column) -> tuple[str, list[str]]:
    """Return the task of a label, and the names of its classes, if these are texts."""
    if label.type().is_string():
        names = label.as_table().distinct().dropna().execute()
        return "multiclass", sorted(names.iloc[:, 0])
    if label.type().is_boolean() or label.isin([0, 1]).all().execute():
        return "classification", []
    return "regression", []


def _snapshots(rows: ir.Table, time: str) -> dict[str, Any]:
    """Return the length of a snapshot, and how many are tested and compared with.

    Raises:
        SettingsError: No row has a time.

    """
    moments = pd.to_datetime(rows[time].execute()).dropna().sort_values()
    if moments.empty:
        raise SettingsError(f"--from: expected rows with a {time}, found none")
    old_count = len(moments) // OLD_SHARE
    span = moments.iloc[-1] - moments.iloc[old_count]
    every = "day"
    for name, length in LENGTHS.items():
        if span >= FEWEST_SNAPSHOTS * length:
            every = name
            break
    snapshot_count = max(1, span // LENGTHS[every])
    rows_of_snapshot = (len(moments) - old_count) / snapshot_count
    test_count = math.ceil(MEAN_ROWS / rows_of_snapshot)
    # The horizon of a label lies between both sets.
    train_count = min(MOST_SNAPSHOTS, snapshot_count - test_count - 2)
    return {
        "every": every,
        "train": max(test_count, train_count),
        "test": test_count,
    }
