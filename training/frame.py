"""The training frame: one row per member of the population and snapshot, with features and label.

A frame has the entity key, event_timestamp, the spec's features in order, and label (int64), in
the canonical order (event_timestamp, key), so that its hash names its content.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.engines import open_engine
from feature_repo.features import labels, open_raw, raw_table
from feature_repo.store import FeatureStore
from stack.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import pandas as pd

    from feature_repo.definition import Dataset
    from stack.settings import Settings
    from stack.spec import ModelSpec

TIME = pa.timestamp("us", tz="UTC")
ARROW = {"int64": pa.int64(), "double": pa.float64(), "string": pa.string()}
MISSING = "__missing__"
"""What a missing string is at training and serving alike: ONNX Runtime would read "None"."""


def build_frame(
    settings: Settings,
    spec: ModelSpec,
    dataset: Dataset,
    moments: Sequence[datetime],
    as_of: datetime,
    version: int,
) -> pa.Table:
    """Label every snapshot from raw version `version` and join the features as they were then.

    Raises:
        TrainingError: the join lost or added rows, or the labels of all rows are the same.

    """
    connection = open_engine(settings).connection
    raw = open_raw(raw_table(settings, dataset), version, as_of, connection)
    labelled = labels(raw, dataset.labels[spec.label], moments)
    frame = with_features(settings, spec, labelled)
    if frame.num_rows != labelled.num_rows:
        raise TrainingError(
            f"the point-in-time join gave {frame.num_rows} rows for {labelled.num_rows} labels"
        )
    if pc.count_distinct(frame["label"]).as_py() < 2:  # noqa: PLR2004  (two classes)
        raise TrainingError(f"every label of {spec.label} is the same: there is nothing to learn")
    return frame


def with_features(settings: Settings, spec: ModelSpec, labelled: pa.Table) -> pa.Table:
    """Join the features as they were at each row's event_timestamp: a frame."""
    entities = labelled.to_pandas()
    entities["as_of"] = labelled["event_timestamp"].cast(pa.int64()).to_numpy()
    return canonical(spec, FeatureStore(settings).historical(spec.feature_service, entities))


def canonical(spec: ModelSpec, table: pa.Table) -> pa.Table:
    """Columns, types and order of a frame; missing strings filled."""
    key = (spec.entity_key, table.schema.field(spec.entity_key).type)
    inputs = [(name, ARROW[kind]) for name, kind in spec.features.items()]
    schema = pa.schema([key, ("event_timestamp", TIME), *inputs, ("label", pa.int64())])
    columns = [table[field.name].cast(field.type) for field in schema]
    filled = [pc.fill_null(c, MISSING) if pa.types.is_string(c.type) else c for c in columns]
    order = [("event_timestamp", "ascending"), (spec.entity_key, "ascending")]
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
