"""The training frame: members of the population at each snapshot, or the label's own rows.

Its columns are the entity's keys, event_timestamp, the spec's features in order, label and the
service's request data. A label is int64 (0 or 1, or the position of one of many classes) or float64
(a number). Rows are sorted by time and keys, so that equal frames have an equal hash.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

import ibis
import ibis.expr.types as ir
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import DataError, NoRequestError, TrainingError
from core.settings import Settings
from core.spec import MISSING, FeatureType, ModelSpec
from core.spec.training import MOST_CATEGORIES
from feature_repo.engine import LabelSource
from feature_repo.labels import label_rows
from feature_repo.published.service import (
    ARROW,
    PublishedService,
    as_stored,
    service_of,
)
from feature_repo.views import entities, require_built
from training.data.snapshots import Plan, Snapshot, dates

log = logging.getLogger(__name__)
TIME_TYPE = pa.timestamp("us", tz="UTC")
VALUE_BYTES = 120
"""Bytes of one feature in one row at the peak of a training. A training on 1M rows of 10 features
takes 1.6 GB, of which the libraries take 0.4 GB (`python -m benchmarks.training`)."""
CATEGORY_BYTES = 28
"""Bytes of one category of a text in one row at that peak: 24 to 27 bytes were measured."""
LABEL_TYPES = {
    "classification": pa.int64(),
    "regression": pa.float64(),
    "multiclass": pa.int64(),
}


def build_frame(
    settings: Settings,
    spec: ModelSpec,
    source: LabelSource,
    snapshots: Sequence[Snapshot],
    as_of: datetime,
    version: int | None,
) -> pa.Table:
    """Label every snapshot from version `version` of `source`, and join the features as they were then.

    Labels of entities outside the population are left out: in a prediction of these `in_population`
    is false.
    """
    with source.opened(as_of, version) as raw:
        labelled = labelled_rows(spec, source, snapshots, raw)
    require_memory(spec, labelled)
    frame = with_features(settings, spec, labelled)
    require_memory(spec, frame)
    if frame.num_rows != labelled.num_rows:
        raise TrainingError(
            f"the point-in-time join gave {frame.num_rows} rows for {labelled.num_rows} labels"
        )
    members = in_population(spec, frame)
    outside_count = frame.num_rows - members.num_rows
    if outside_count:
        log.warning(
            "%s: %d of %d labels of entities outside [population] are left out",
            spec.name,
            outside_count,
            frame.num_rows,
        )
    return members


def labelled_rows(
    spec: ModelSpec, source: LabelSource, snapshots: Sequence[Snapshot], raw: ir.Table
) -> pa.Table:
    """Return keys, event_timestamp, label, and all other columns of the label's expression.

    Raises:
        TrainingError: An entity has two labels at one time, or a label is no value of the task.

    """
    rows_of_label = snapshot_labels(spec, source, snapshots, raw)
    require_outcome_key(spec, rows_of_label)
    label_table = sampled(spec, rows_of_label).to_pyarrow()
    rows = with_typed_labels(spec, snapshot_rows(label_table, snapshots))
    key = [*spec.entity_key, "event_timestamp"]
    keys = rows.select(key).to_pandas()
    repeated_keys = keys[keys.duplicated()]
    if repeated_keys.size:
        values = ", ".join(map(str, repeated_keys.iloc[0]))
        raise TrainingError(
            f"label {spec.label_name}: expected one row for each {', '.join(key)}, "
            f"found several of {values}"
        )
    return rows


def require_outcome_key(spec: ModelSpec, rows: ir.Table) -> None:
    """Refuse rows of a label without the columns that match them to predictions.

    Raises:
        DataError: A column is missing.

    """
    for name in spec.outcome_key or ():
        if name not in rows.columns:
            raise DataError(
                f"{spec.name}.toml: outcome_key: {name}: expected a column of the rows of "
                f"label {spec.label_name}, found {', '.join(rows.columns)}"
            )


def snapshot_labels(
    spec: ModelSpec, source: LabelSource, snapshots: Sequence[Snapshot], raw: ir.Table
) -> ir.Table:
    """Return the rows of the label's expression over raw rows, from the first moment to the last."""
    moments = sorted({time for part in snapshots for time in (part.start, part.last)})
    own_rows = spec.snapshots.rows == "label"
    return label_rows(raw, source.label, moments, own_rows=own_rows)


def sampled(spec: ModelSpec, rows: ir.Table) -> ir.Table:
    """Return the rows of the entities in the spec's sample: the same entities on every engine."""
    share = spec.snapshots.sample
    if share == 1:
        return rows
    key_texts = [rows[name].cast("string") for name in spec.entity_key]
    digest = ibis.literal("/").join(key_texts).hexdigest("md5")
    limit = f"{int(share * 16**8):08x}"
    return rows.filter(digest.substr(0, 8) < limit)


def memory_needed(spec: ModelSpec, rows: pa.Table) -> int:
    """Return the bytes that a training takes for a frame, or for labels before the join.

    Before the join the texts are not known, and so neither is the number of their columns.
    """
    categories = 0
    for name, kind in spec.inputs.items():
        if kind == "string" and name in rows.column_names:
            count = pc.count_distinct(rows[name]).as_py()
            categories += min(count, MOST_CATEGORIES)
    value_bytes = len(spec.features) * VALUE_BYTES + categories * CATEGORY_BYTES
    return int(rows.num_rows * value_bytes)


def require_memory(spec: ModelSpec, rows: pa.Table) -> None:
    """Refuse rows that do not fit in the memory that is free; see `memory_needed`.

    Raises:
        TrainingError: They do not fit.

    """
    needed = memory_needed(spec, rows)
    free = psutil.virtual_memory().available
    if needed > free:
        share = spec.snapshots.sample * free / needed / 2
        raise TrainingError(
            f"{spec.name}: a training on {rows.num_rows:,} rows takes about "
            f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: train on a machine with "
            f"more memory, or write sample = {share:.2g} in [snapshots] of {spec.name}.toml"
        )


def extent(spec: ModelSpec, plan: Plan, labelled: pa.Table, step: int = 1) -> str:
    """Return how much a training sees, in a sentence.

    Args:
        spec: The model.
        plan: Plan of the training.
        labelled: Frame with the rows of its snapshots.
        step: `labelled` has every n-th entity.

    """
    train = _extent_of(spec, plan.train, labelled, step)
    test = _extent_of(spec, plan.test, labelled, step)
    megabytes = step * memory_needed(spec, labelled) / 1e6
    return (
        f"{spec.name}: training on {train}, test on {test}; "
        f"about {megabytes:,.0f} MB of memory"
    )


def _extent_of(
    spec: ModelSpec, snapshots: Sequence[Snapshot], labelled: pa.Table, step: int
) -> str:
    row_count = step * snapshot_rows(labelled, snapshots).num_rows
    period = f"by the {spec.snapshots.every}: {len(snapshots)}, {dates(snapshots)}"
    return f"about {row_count:,} rows (snapshots {period})"


def population(
    settings: Settings,
    spec: ModelSpec,
    moment: datetime,
    *,
    in_sample: bool = False,
    since: datetime | None = None,
) -> pa.Table:
    """Return the members of the population at `moment`, as a frame without `label`.

    Args:
        settings: Settings of the installation.
        spec: The model.
        moment: Aware UTC.
        in_sample: Whether to leave out members that are not in the spec's sample.
        since: Leave out members whose features have not changed after this moment.

    Raises:
        NoRequestError: Only requests name the entities to score, or the spec has no population.
        DataError: Nobody is in the population.

    """
    service = service_of(settings, spec)
    require_listed(spec, service)
    if spec.population is None:
        raise NoRequestError(
            f"{spec.name}: expected [population], to say whom to score, found none: name a "
            "table with the rows to score (--from), or add it to the spec and train"
        )
    known_entities = entities(service, spec.entity_key, moment, since=since)
    if in_sample:
        known_entities = sampled(spec, ibis.memtable(known_entities)).to_pyarrow()
    entity_count = known_entities.num_rows
    if since and not entity_count:
        raise NoRequestError(f"{spec.name}: no features have changed since {since}")
    if entity_count:
        moments = pa.repeat(pa.scalar(moment, TIME_TYPE), entity_count)
        rows = known_entities.append_column("event_timestamp", moments)
        without_audit = spec.model_copy(update={"audit": {}})
        members = in_population(spec, with_features(settings, without_audit, rows))
        if members.num_rows:
            return members
    bounds = f"{spec.population.feature} from 0 to below {spec.population.below}"
    raise DataError(
        f"{spec.name}: nobody is in the population as of {moment:%Y-%m-%d}: of {entity_count} "
        f"entities none has {bounds}. Expected a [population] in {spec.name}.toml that "
        "entities meet, or newer features"
    )


def require_listed(spec: ModelSpec, service: PublishedService) -> None:
    """Refuse a population whose entities no view lists, or whose features need a request.

    Raises:
        NoRequestError: Only requests name the entities to score.

    """
    key = spec.entity_key
    is_listed = any({*key} <= {*keys} for keys in service.join_keys.values())
    reason = ""
    if service.request_data:
        reason = f"its features need {', '.join(service.request_data)} of a request"
    elif not is_listed:
        reason = f"no view of {spec.feature_service} has all of {', '.join(key)}"
    if reason:
        raise NoRequestError(
            f"{spec.name}: {reason}: a population cannot be scored without requests; "
            "name a table with the rows to score: --from"
        )


def in_population(spec: ModelSpec, frame: pa.Table) -> pa.Table:
    """Return the rows of a frame whose entity is a member. A null is outside."""
    if spec.population is None:
        return frame
    value = pc.field(spec.population.feature)
    return frame.filter((value >= 0) & (value < spec.population.below))


def with_typed_labels(spec: ModelSpec, labelled: pa.Table) -> pa.Table:
    """Return the rows with labels in the type of the task.

    Of many classes a label becomes the position; the rows have the name or the position of a class.

    Raises:
        TrainingError: A label is text, or its value would change.

    """
    column = labelled["label"]
    wanted_type = LABEL_TYPES[spec.task]
    problem = (
        f"label {spec.label_name}: expected {wanted_type}, as a {spec.task} has it, "
        f"found {column.type}"
    )
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if is_text and not spec.classes:
        raise TrainingError(problem)  # not even text that could be read as a number
    try:
        if spec.classes:
            names = spec.classes if is_text else range(len(spec.classes))
            column = _positions(spec, column, pa.array(names, column.type))
        place = labelled.schema.get_field_index("label")
        return labelled.set_column(place, "label", column.cast(wanted_type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise TrainingError(f"{problem}: {exc}") from exc


def _positions(
    spec: ModelSpec, column: pa.ChunkedArray, classes: pa.Array
) -> pa.ChunkedArray:
    is_class = pc.is_in(column, classes)
    other_values = column.filter(pc.invert(is_class)).drop_null()
    if len(other_values):
        raise TrainingError(
            f"label {spec.label_name}: expected {', '.join(spec.classes)} (classes in "
            f"{spec.name}.toml), or 0 to {len(classes) - 1}, found {other_values[0]}"
        )
    return pc.index_in(column, classes)


def with_features(
    settings: Settings,
    spec: ModelSpec,
    labelled: pa.Table,
    kept: Mapping[str, FeatureType] = MappingProxyType({}),
) -> pa.Table:
    """Join the features as they were at each row's event_timestamp: a frame.

    All columns of `labelled` reach Feast; the frame has those of `kept` too.

    Raises:
        TrainingError: A row of `labelled` lacks request data, or `labelled` an audit column.

    """
    service = service_of(settings, spec)
    for name, kind in service.request_data.items():
        place = labelled.schema.get_field_index(name)
        if place < 0 or labelled[name].null_count:
            raise TrainingError(
                f"label {spec.label_name}: expected request data {name} ({kind}) in each of "
                "its rows, found none"
            )
        labelled = labelled.set_column(place, name, as_stored(labelled[name], kind))
    served_columns = service.features.keys() | service.request_data.keys()
    for name in spec.audit.keys() - served_columns:
        place = labelled.schema.get_field_index(name)
        column_type = "no such column" if place < 0 else labelled[name].type
        wanted_type = ARROW[spec.audit[name]]
        if column_type != wanted_type:
            raise TrainingError(
                f"{spec.name}.toml: audit.{name}: expected {wanted_type} of "
                f"{spec.feature_service} or {spec.label_name}'s rows, found {column_type}"
            )
        labelled = labelled.set_column(place, name, labelled[name].cast(pa.string()))
    entity_rows = labelled.to_pandas()
    entity_rows["as_of"] = labelled["event_timestamp"].cast(pa.int64()).to_numpy()
    require_built(service)
    fields = {**service.request_data, **kept}
    return canonical(spec, service.historical(entity_rows), fields)


def canonical(
    spec: ModelSpec, table: pa.Table, fields: Mapping[str, FeatureType]
) -> pa.Table:
    """Return the rows with columns, types and order of a frame.

    Audit columns become text, and missing texts are filled.

    Args:
        spec: The model.
        table: Rows with all columns of a frame; a population has no label.
        fields: Types of the service's request data.

    """
    types = {name: ARROW[kind] for name, kind in spec.entity_key.items()}
    types["event_timestamp"] = TIME_TYPE
    types |= {name: ARROW[kind] for name, kind in spec.features.items()}
    if "label" in table.column_names:
        types["label"] = LABEL_TYPES[spec.task]
    types |= dict.fromkeys(spec.audit, pa.string())
    types |= {name: ARROW[kind] for name, kind in fields.items()}
    columns = {name: table[name].cast(kind) for name, kind in types.items()}
    for name in (*spec.features, *spec.audit):
        if types[name] == pa.string():
            if pc.any(pc.equal(columns[name], MISSING)).as_py():
                log.warning(
                    "%s: %s: text %s and null become one value",
                    spec.name,
                    name,
                    MISSING,
                )
            columns[name] = pc.fill_null(columns[name], MISSING)
    order = [(name, "ascending") for name in ("event_timestamp", *spec.entity_key)]
    return pa.table(columns, schema=pa.schema(types)).sort_by(order)


def snapshot_rows(frame: pa.Table, snapshots: Sequence[Snapshot]) -> pa.Table:
    """Return the rows of these snapshots, which do not overlap."""
    time = pc.field("event_timestamp")
    is_inside = pc.scalar(value=False)
    for snapshot in snapshots:
        has_begun = time >= pa.scalar(snapshot.start, TIME_TYPE)
        is_inside |= has_begun & (time <= pa.scalar(snapshot.last, TIME_TYPE))
    return frame.filter(is_inside)


def feature_columns(spec: ModelSpec, frame: pa.Table) -> pd.DataFrame:
    """Return the model's input: the spec's features in order, of the types of `inputs`."""
    columns = {
        name: frame[name].cast(ARROW[kind]) for name, kind in spec.inputs.items()
    }
    rows: pd.DataFrame = pa.table(columns).to_pandas()
    return rows


def content_hash(frame: pa.Table) -> str:
    """Return the SHA-256 over column names, types and every value, in the frame's order."""
    sink = pa.BufferOutputStream()
    whole = frame.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, whole.schema) as stream:
        stream.write_table(whole)
    return hashlib.sha256(sink.getvalue()).hexdigest()
