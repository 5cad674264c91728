"""The training frame: members of the population at each snapshot, or the label's own rows.

A frame has the entity's keys, event_timestamp, the spec's features in order, label (int64 of
classes, of many the position; float64 of numbers) and the service's request data, sorted by time
and keys, so that its hash names its content.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import DataError, NoRequestError, TrainingError
from core.settings import Settings
from core.spec import MISSING, FeatureType, ModelSpec
from feature_repo.definition import Dataset
from feature_repo.engines import engine_connection
from feature_repo.features import labels, open_raw, raw_table
from feature_repo.service import ARROW, PublishedService, as_stored
from feature_repo.views import entities
from training.snapshots import Plan, Snapshot, dates

log = logging.getLogger(__name__)
TIME = pa.timestamp("us", tz="UTC")
VALUE_BYTES = 120
"""Of a feature in a row, at the peak of a training: of 1M rows of 10 it takes 1.6 GB, the libraries
0.4 GB of these (`python -m benchmarks.training`)."""
LABELS = {
    "classification": pa.int64(),
    "regression": pa.float64(),
    "multiclass": pa.int64(),
}


def build_frame(
    settings: Settings,
    spec: ModelSpec,
    dataset: Dataset,
    snapshots: Sequence[Snapshot],
    as_of: datetime,
    version: int,
) -> pa.Table:
    """Label every snapshot from raw version `version` and join the features as they were then.

    Labels of entities outside the population are left out: serving says the same of them.
    """
    with engine_connection(settings) as connection:
        raw = open_raw(raw_table(settings, dataset), version, as_of, connection)
        labelled = labelled_rows(spec, dataset, snapshots, raw)
    require_memory(spec, labelled.num_rows)
    frame = with_features(settings, spec, labelled)
    if frame.num_rows != labelled.num_rows:
        raise TrainingError(
            f"the point-in-time join gave {frame.num_rows} rows for {labelled.num_rows} labels"
        )
    inside = in_population(spec, frame)
    if outside := frame.num_rows - inside.num_rows:
        share = f"{outside} of {frame.num_rows} labels"
        log.warning(
            "%s: %s of entities outside [population] are left out", spec.name, share
        )
    return inside


def labelled_rows(
    spec: ModelSpec, dataset: Dataset, snapshots: Sequence[Snapshot], raw: ir.Table
) -> pa.Table:
    """Join keys, event_timestamp, label, and whatever else the label's expression gives."""
    moments = sorted(
        {moment for each in snapshots for moment in (each.start, each.last)}
    )
    key = [*spec.entity_key, "event_timestamp"]
    own_rows = spec.snapshots.rows == "label"
    label_rows = labels(raw, dataset.labels[spec.label], moments, own_rows=own_rows)
    label_table = sampled(spec, label_rows).to_pyarrow()
    rows = typed(spec, at(label_table, snapshots))
    keys = rows.select(key).to_pandas()
    if (again := keys[keys.duplicated()]).size:
        found = (
            f"{', '.join(key)}, found several of {', '.join(map(str, again.iloc[0]))}"
        )
        raise TrainingError(f"label {spec.label}: expected one row for each {found}")
    return rows


def sampled(spec: ModelSpec, rows: ir.Table) -> ir.Table:
    """Return the rows of the entities in the spec's sample: the same ones on every engine."""
    share = spec.snapshots.sample
    if share == 1:
        return rows
    texts = [rows[name].cast("string") for name in spec.entity_key]
    digest = ibis.literal("/").join(texts).hexdigest("md5")
    return rows.filter(digest.substr(0, 8) < f"{int(share * 16**8):08x}")


def memory_needed(spec: ModelSpec, row_count: int) -> int:
    """Return the bytes that a training takes for a frame of so many rows."""
    return row_count * len(spec.features) * VALUE_BYTES


def require_memory(spec: ModelSpec, row_count: int) -> None:
    """Refuse a frame that does not fit in the memory that is free.

    Raises:
        TrainingError: It does not.

    """
    needed = memory_needed(spec, row_count)
    free = psutil.virtual_memory().available
    if needed > free:
        share = spec.snapshots.sample * free / needed / 2
        raise TrainingError(
            f"{spec.name}: a training on {row_count:,} rows takes about "
            f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: train on a machine with "
            f"more memory, or write sample = {share:.2g} in [snapshots] of {spec.name}.toml"
        )


def extent(spec: ModelSpec, plan: Plan, labelled: pa.Table, share: int = 1) -> str:
    """Say what a training sees. share: of how many entities `labelled` holds one."""
    train, test = (
        f"about {share * at(labelled, part).num_rows:,} rows "
        f"({len(part)} by the {spec.snapshots.every}, {dates(part)})"
        for part in (plan.train, plan.test)
    )
    megabytes = memory_needed(spec, share * labelled.num_rows) / 1e6
    memory = f"about {megabytes:,.0f} MB of memory"
    return f"{spec.name}: training on {train}, test on {test}; {memory}"


def population(settings: Settings, spec: ModelSpec, moment: datetime) -> pa.Table:
    """Members of the population at `moment`, at least one: a frame without `label`."""
    if spec.population is None:
        raise DataError(
            f"{spec.name}: expected [population], to say whom to score, found none: ask "
            f"/predict/batch for the rows you have, or add it to {spec.name}.toml and train"
        )
    service = PublishedService(settings, spec.feature_service)
    if fields := service.request_data:
        needs = f"its features need {', '.join(fields)} of a request"
        raise NoRequestError(
            f"{spec.name}: {needs}: only requests are scored, no population"
        )
    keys, joins = spec.entity_key.keys(), service.join_keys
    if not (views := {name: key for name, key in joins.items() if keys <= {*key}}):
        why = f"no view of {spec.feature_service} has all of {', '.join(keys)}"
        raise NoRequestError(
            f"{spec.name}: {why}: only requests are scored, no population"
        )
    known = entities(settings, views, spec.entity_key, moment)
    if known.num_rows:
        moments = pa.repeat(pa.scalar(moment, TIME), known.num_rows)
        no_labels = pa.repeat(pa.scalar(0), known.num_rows)
        rows = known.append_column("event_timestamp", moments)
        rows = rows.append_column("label", no_labels)
        plain = spec.model_copy(update={"audit": {}})
        joined = with_features(settings, plain, rows)
        members = in_population(spec, joined)
        if members.num_rows:
            return members.drop_columns("label")
    bounds = f"{spec.population.feature} from 0 to below {spec.population.below}"
    raise DataError(
        f"{spec.name}: nobody is in the population as of {moment:%Y-%m-%d}: of {known.num_rows} "
        f"entities none has {bounds}. Expected values of [population] in {spec.name}.toml that "
        f"some have, or newer features: gyre ingest {spec.dataset}"
    )


def in_population(spec: ModelSpec, frame: pa.Table) -> pa.Table:
    """Rows of a frame whose entity is a member of the population, if there is one; no null is."""
    if spec.population is None:
        return frame
    value = pc.field(spec.population.feature)
    return frame.filter((value >= 0) & (value < spec.population.below))


def typed(spec: ModelSpec, labelled: pa.Table) -> pa.Table:
    """Labels in the type of the task; TrainingError for text, or if their values would change.

    Of many classes the position of each, which is told by its name or itself.
    """
    found, wanted = labelled["label"], LABELS[spec.task]
    said = f"label {spec.label}: expected {wanted}, as a {spec.task} has it, found {found.type}"
    text = pa.types.is_string(found.type) or pa.types.is_large_string(found.type)
    if text and not spec.classes:
        raise TrainingError(said)  # not even text that could be read as a number
    place = labelled.schema.get_field_index("label")
    try:
        if spec.classes:
            known = pa.array(
                spec.classes if text else range(len(spec.classes)), found.type
            )
            found = _positions(spec, found, known)
        return labelled.set_column(place, "label", found.cast(wanted))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise TrainingError(f"{said}: {exc}") from exc


def _positions(
    spec: ModelSpec, found: pa.ChunkedArray, known: pa.Array
) -> pa.ChunkedArray:
    others = found.filter(pc.invert(pc.is_in(found, known))).drop_null()
    if len(others):
        names = f"{', '.join(spec.classes)} (classes in {spec.name}.toml)"
        raise TrainingError(
            f"label {spec.label}: expected {names}, or 0 to {len(known) - 1}, found {others[0]}"
        )
    return pc.index_in(found, known)


def with_features(settings: Settings, spec: ModelSpec, labelled: pa.Table) -> pa.Table:
    """Join the features as they were at each row's event_timestamp: a frame.

    TrainingError: a row of `labelled` lacks request data, or `labelled` an audit column; all its
    columns reach Feast.
    """
    service = PublishedService(settings, spec.feature_service)
    fields = service.request_data
    for name, kind in fields.items():
        place = labelled.schema.get_field_index(name)
        if place < 0 or labelled[name].null_count:
            expected = f"expected request data {name} ({kind}) in each of its rows"
            raise TrainingError(f"label {spec.label}: {expected}, found none")
        labelled = labelled.set_column(place, name, as_stored(labelled[name], kind))
    given = service.features.keys() | fields.keys()
    for name in spec.audit.keys() - given:
        place, wanted = labelled.schema.get_field_index(name), ARROW[spec.audit[name]]
        found = "no such column" if place < 0 else labelled[name].type
        if found != wanted:
            said = f"expected {wanted} of {spec.feature_service} or {spec.label}'s rows"
            raise TrainingError(
                f"{spec.name}.toml: audit.{name}: {said}, found {found}"
            )
        labelled = labelled.set_column(place, name, labelled[name].cast(pa.string()))
    entities = labelled.to_pandas()
    entities["as_of"] = labelled["event_timestamp"].cast(pa.int64()).to_numpy()
    return canonical(spec, service.historical(entities), fields)


def canonical(
    spec: ModelSpec, table: pa.Table, fields: Mapping[str, FeatureType]
) -> pa.Table:
    """Columns, types and order of a frame; audit columns as text, missing strings filled.

    fields: its request data.
    """
    types = {name: ARROW[kind] for name, kind in spec.entity_key.items()}
    types["event_timestamp"] = TIME
    types |= {name: ARROW[kind] for name, kind in spec.features.items()}
    types["label"] = LABELS[spec.task]
    types |= dict.fromkeys(spec.audit, pa.string())
    types |= {name: ARROW[kind] for name, kind in fields.items()}
    columns = {name: table[name].cast(kind) for name, kind in types.items()}
    for name in (*spec.features, *spec.audit):
        if types[name] == pa.string():
            columns[name] = pc.fill_null(columns[name], MISSING)
    order = [(name, "ascending") for name in ("event_timestamp", *spec.entity_key)]
    return pa.table(columns, schema=pa.schema(types)).sort_by(order)


def at(frame: pa.Table, snapshots: Sequence[Snapshot]) -> pa.Table:
    """Rows of these snapshots: more have begun by then than are over."""
    ends = [each.start for each in snapshots], [each.last for each in snapshots]
    starts, lasts = (pa.chunked_array([sorted(each)], TIME).to_numpy() for each in ends)
    times = frame["event_timestamp"].to_numpy()
    begun, over = np.searchsorted(starts, times, "right"), np.searchsorted(lasts, times)
    return frame.filter(pa.array(begun > over))


def features(spec: ModelSpec, frame: pa.Table) -> pd.DataFrame:
    """The model's input: the spec's features in order, of the types of `inputs`."""
    columns = {
        name: frame[name].cast(ARROW[kind]) for name, kind in spec.inputs.items()
    }
    rows: pd.DataFrame = pa.table(columns).to_pandas()
    return rows


def content_hash(frame: pa.Table) -> str:
    """SHA-256 over column names, types and every value, in the frame's order."""
    sink = pa.BufferOutputStream()
    whole = frame.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, whole.schema) as stream:
        stream.write_table(whole)
    return hashlib.sha256(sink.getvalue()).hexdigest()
