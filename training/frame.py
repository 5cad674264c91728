"""The training frame: one row per member of the population and snapshot, with features and label.

A frame has the entity's keys, event_timestamp, the spec's features in order, and label (int64 of
classes, float64 of numbers), in the canonical order (event_timestamp, keys), so that its hash names
its content.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.engines import open_engine
from feature_repo.features import entities, labels, open_raw, raw_table
from feature_repo.store import FeatureStore
from stack.errors import DataError, TrainingError
from stack.spec import MISSING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import pandas as pd

    from feature_repo.definition import Dataset
    from stack.settings import Settings
    from stack.spec import ModelSpec

log = logging.getLogger(__name__)
TIME = pa.timestamp("us", tz="UTC")
ARROW = {"int64": pa.int64(), "double": pa.float64(), "string": pa.string()}
LABELS = {"classification": pa.int64(), "regression": pa.float64()}


def build_frame(
    settings: Settings,
    spec: ModelSpec,
    dataset: Dataset,
    moments: Sequence[datetime],
    as_of: datetime,
    version: int,
) -> pa.Table:
    """Label every snapshot from raw version `version` and join the features as they were then.

    Labels of entities outside the population are left out: serving says the same of them.

    Raises:
        TrainingError: the labels are no numbers of the task, or the join lost or added rows.

    """
    connection = open_engine(settings).connection
    raw = open_raw(raw_table(settings, dataset), version, as_of, connection)
    labelled = typed(spec, labels(raw, dataset.labels[spec.label], moments))
    frame = with_features(settings, spec, labelled)
    if frame.num_rows != labelled.num_rows:
        raise TrainingError(
            f"the point-in-time join gave {frame.num_rows} rows for {labelled.num_rows} labels"
        )
    inside = in_population(spec, frame)
    if outside := frame.num_rows - inside.num_rows:
        log.warning(
            "%s: %d of %d labels are of entities outside [population] and are left out",
            spec.name, outside, frame.num_rows,
        )  # fmt: skip
    return inside


def population(settings: Settings, spec: ModelSpec, dataset: Dataset, moment: datetime) -> pa.Table:
    """Members of the population at `moment`: a frame without `label`.

    Raises:
        DataError: nobody is a member.

    """
    known = entities(settings, dataset.views, spec.entity_key, moment)
    rows = [key | {"event_timestamp": moment, "label": 0} for key in known]
    if rows:
        joined = with_features(settings, spec, pa.Table.from_pylist(rows))
        members = in_population(spec, joined)
    if not rows or not members.num_rows:
        bounds = f"{spec.population.feature} from 0 to below {spec.population.below}"
        raise DataError(
            f"{spec.name}: nobody is in the population as of {moment:%Y-%m-%d}: of {len(known)} "
            f"entities none has {bounds}. Expected values of [population] in {spec.name}.toml that "
            f"some have, or newer features: gyre ingest {dataset.name}"
        )
    return members.drop_columns("label")


def in_population(spec: ModelSpec, frame: pa.Table) -> pa.Table:
    """Rows of a frame whose entity is a member of the population; a null is none."""
    value = frame[spec.population.feature]
    lower, upper = pc.greater_equal(value, 0), pc.less(value, spec.population.below)
    return frame.filter(pc.and_(lower, upper))


def typed(spec: ModelSpec, labelled: pa.Table) -> pa.Table:
    """Labels in the type of the task.

    Raises:
        TrainingError: they are text, or would change by it.

    """
    found, wanted = labelled["label"], LABELS[spec.task]
    said = f"label {spec.label}: expected {wanted}, as a {spec.task} has it, found {found.type}"
    if pa.types.is_string(found.type) or pa.types.is_large_string(found.type):
        raise TrainingError(said)  # not even text that could be read as a number
    place = labelled.schema.get_field_index("label")
    try:
        return labelled.set_column(place, "label", found.cast(wanted))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise TrainingError(f"{said}: {exc}") from exc


def with_features(settings: Settings, spec: ModelSpec, labelled: pa.Table) -> pa.Table:
    """Join the features as they were at each row's event_timestamp: a frame."""
    entities = labelled.to_pandas()
    entities["as_of"] = labelled["event_timestamp"].cast(pa.int64()).to_numpy()
    return canonical(spec, FeatureStore(settings).historical(spec.feature_service, entities))


def canonical(spec: ModelSpec, table: pa.Table) -> pa.Table:
    """Columns, types and order of a frame; missing strings filled."""
    keys = [(name, ARROW[kind]) for name, kind in spec.entity_key.items()]
    inputs = [(name, ARROW[kind]) for name, kind in spec.features.items()]
    schema = pa.schema([*keys, ("event_timestamp", TIME), *inputs, ("label", LABELS[spec.task])])
    columns = [table[field.name].cast(field.type) for field in schema]
    texts = {name for name, kind in spec.features.items() if kind == "string"}
    filled = [
        pc.fill_null(column, MISSING) if field.name in texts else column
        for field, column in zip(schema, columns, strict=True)
    ]
    order = [(name, "ascending") for name in ("event_timestamp", *spec.entity_key)]
    return pa.table(filled, schema=schema).sort_by(order)


def at(frame: pa.Table, moments: Sequence[datetime]) -> pa.Table:
    """Rows of these snapshots."""
    return frame.filter(pc.is_in(frame["event_timestamp"], pa.array(moments, TIME)))


def features(spec: ModelSpec, frame: pa.Table) -> pd.DataFrame:
    """The model's input: the spec's features in order."""
    rows: pd.DataFrame = frame.select(list(spec.features)).to_pandas()
    return rows


def content_hash(frame: pa.Table) -> str:
    """SHA-256 over column names, types and every value, in the frame's order."""
    sink = pa.BufferOutputStream()
    whole = frame.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, whole.schema) as stream:
        stream.write_table(whole)
    return hashlib.sha256(sink.getvalue()).hexdigest()
