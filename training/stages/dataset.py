"""Stage 2, dataset: the training frame, in MLflow as the run's dataset.

The frame is built from the raw versions that the run's tags pin. Members of the test snapshots
without a label are stored beside it; too many of them, or a frame that nothing can be learnt from,
end the run.
"""

import logging
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from core.errors import NoRequestError, TrainingError
from core.settings import Settings
from core.spec import FLOAT32, INPUTS, ModelSpec
from feature_repo.labels import label_source
from mlflow_server.api.tracking import Tracking
from training.artifacts import (
    FRAME,
    PLAN,
    UNLABELLED,
    artifact_bytes,
    load_table,
    store_table,
)
from training.data.frame import (
    build_frame,
    content_hash,
    extent,
    population,
    snapshot_rows,
)
from training.data.lineage import FIRST_EVENT_TAG, PLANNED_TAG, label_version
from training.data.snapshots import PLANS, Plan, dates, plan_snapshots

log = logging.getLogger(__name__)
FEWEST_ROWS = 50
"""Rows: with fewer, each interval of a metric is so wide that chance decides on the gates."""
TOLERATED_SHARE = 0.05
"""Share of members without a label up to which no reason has to be stated."""


def dataset(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Build the frame from the versions that the run's tags pin, and store it with its plan.

    Raises:
        TrainingError: Nothing can be learnt from it, or too many members have no label.

    """
    tracking = Tracking(settings)
    tags = tracking.run(run_id).tags
    as_of = datetime.fromisoformat(tags["as_of"])
    planned_until = datetime.fromisoformat(tags[PLANNED_TAG])
    source = label_source(settings, spec)
    version = label_version(spec, tags)
    first_event = datetime.fromisoformat(tags[FIRST_EVENT_TAG])
    label = source.label
    planned = plan_snapshots(first_event, planned_until, label, spec.snapshots)
    frame = build_frame(settings, spec, source, planned.snapshots, as_of, version)
    if spec.is_trained_here:
        log.info(extent(spec, planned, frame))
    train = snapshot_rows(frame, planned.train)
    test = snapshot_rows(frame, planned.test)
    unlabelled = without_label(settings, spec, planned, test)
    member_count = test.num_rows + unlabelled.num_rows
    remark = coverage(spec, unlabelled.num_rows, member_count, label.unlabelled)
    if remark:
        log.warning("%s: %s", spec.name, remark)
    problems = unlearnable(spec, train, test)
    if problems:
        raise TrainingError(f"{spec.name}: {'; '.join(problems)}")
    digest = content_hash(train)
    tracking.log_dict(run_id, PLANS.dump_python(planned, mode="json"), PLAN)
    store_table(tracking, run_id, UNLABELLED, unlabelled)
    store_table(tracking, run_id, FRAME, frame)
    name = spec.label_name or spec.name
    tracking.log_dataset(run_id, FRAME, frame, name=name, digest=digest)
    params = {
        "train_snapshots": dates(planned.train),
        "test_snapshot": dates(planned.test),
        "train_rows": train.num_rows,
        "test_rows": test.num_rows,
        "test_members": member_count,
    }
    tags = {"frame_sha256": digest, "unlabelled": remark}
    tracking.log(run_id, tags=tags, params=params)


def without_label(
    settings: Settings, spec: ModelSpec, planned: Plan, test: pa.Table
) -> pa.Table:
    """Return the members of the population with no row in the frame `test`.

    There are none if the label's rows are the population: if the spec takes the label's own rows, or
    no view lists the entities.
    """
    nobody = test.drop_columns("label").slice(0, 0)
    if spec.snapshots.rows == "label":
        return nobody
    try:
        parts = [
            population(settings, spec, part.start, in_sample=True)
            for part in planned.test
        ]
    except NoRequestError:
        return nobody
    members = pa.concat_tables(parts)
    key = ["event_timestamp", *spec.entity_key]
    unlabelled = members.join(test.select(key), key, join_type="left anti")
    unlabelled = unlabelled.sort_by([(name, "ascending") for name in key])
    return unlabelled.select(members.column_names)


def coverage(spec: ModelSpec, unlabelled: int, members: int, reason: str | None) -> str:
    """Return a sentence on how many members have no label; empty if all have one.

    Args:
        spec: The model.
        unlabelled: Number of members without a label.
        members: Number of all members.
        reason: Reason that the label states.

    Raises:
        TrainingError: They are too many, and no reason is stated.

    """
    if not unlabelled:
        return ""
    sentence = f"{unlabelled:,} of {members:,} members of the population have no {spec.label_name}"
    if reason:
        return f"{sentence} ({reason})"
    if unlabelled > TOLERATED_SHARE * members:
        raise TrainingError(
            f"label {spec.label_name}: {sentence}. Expected a label for each member, a narrower "
            f'[population], or a stated reason: Label(unlabelled="…") in {spec.dataset}.py'
        )
    return sentence


def unlearnable(
    spec: ModelSpec, train: pa.Table, test: pa.Table, fewest: int = FEWEST_ROWS
) -> list[str]:
    """Return a line for each reason why training or its evaluation would mean nothing."""
    lines = []
    for name, rows, key in (("training", train, "train"), ("test", test, "test")):
        if rows.num_rows < fewest:
            lines.append(
                f"expected at least {fewest} {name} rows, found {rows.num_rows}; "
                f"more: {key} of [snapshots] in {spec.name}.toml"
            )
    if spec.has_labels:
        lines += _label_problems(spec, train, test)
    rows = pa.concat_tables([train, test], promote_options="permissive")
    for feature, kind in spec.features.items():
        if not _has_two_values(train[feature]):
            lines.append(
                f"{feature} has only one value in the {train.num_rows} training rows"
            )
        nulls = rows[feature].null_count
        if INPUTS[kind] == "int64" and nulls:
            cast = f'derived={{"{feature}": _.{feature}.cast("float64")}}'
            lines.append(
                f"{feature} is null in {nulls} rows, which an {kind} cannot be: make it a double "
                f"in the spec and in its view (of Windows: {cast}), fill it in the view, or label "
                "no row before its entity's first"
            )
        if INPUTS[kind] == "double":
            infinite = pc.sum(pc.is_inf(rows[feature])).as_py()
            if infinite:
                lines.append(f"{feature} is infinite in {infinite} rows")
    return lines


def _label_problems(spec: ModelSpec, train: pa.Table, test: pa.Table) -> list[str]:
    """Return a line for labels that are all the same, or are no value of the task."""
    lines = []
    for name, rows in (("training", train), ("test", test)):
        if not _has_two_values(rows["label"]):
            lines.append(f"every label of the {rows.num_rows} {name} rows is the same")
    positions = train["label"].unique().to_pylist()
    absent = [
        name for position, name in enumerate(spec.classes) if position not in positions
    ]
    if absent:
        lines.append(
            f"no label of the {train.num_rows} training rows is {', '.join(absent)}"
        )
    both = pa.concat_tables([train, test], promote_options="permissive")
    labels = both["label"]
    if labels.null_count:
        lines.append(
            f"label {spec.label_name} is null in {labels.null_count} rows: leave these out"
        )
    if spec.classes:
        return lines
    expected = "0 or 1"
    is_value = pc.is_in(labels, pa.array([0, 1], labels.type))
    if spec.task == "regression":
        expected = f"a number up to {FLOAT32:.1e}"
        is_value = pc.less_equal(pc.abs(labels), FLOAT32)
    wrong_labels = labels.filter(pc.invert(is_value)).drop_null()
    if len(wrong_labels):
        lines.append(
            f"label {spec.label_name}: expected {expected}, found {wrong_labels[0]}"
        )
    return lines


def _has_two_values(values: pa.ChunkedArray) -> bool:
    """Return whether there are two values; nulls do not count."""
    return bool(pc.count_distinct(values).as_py() > 1)


def load_frame(tracking: Tracking, run_id: str) -> tuple[pa.Table, Plan]:
    """Return the frame and plan that `dataset` stored."""
    frame = load_table(tracking, run_id, FRAME)
    return frame, PLANS.validate_json(artifact_bytes(tracking, run_id, PLAN))
