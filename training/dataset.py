"""Stage 2: the training frame, in MLflow as the run's dataset."""

import logging
import tempfile
from datetime import datetime
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from core.errors import NoRequestError, TrainingError
from core.settings import Settings
from core.spec import FLOAT32, INPUTS, ModelSpec
from feature_repo.datasets import load_dataset
from feature_repo.definition import table_versions
from mlflow_server.tracking import DATA_FOLDER, Tracking
from training.artifacts import FRAME, PLAN, UNLABELLED, fetched, read
from training.frame import at, build_frame, content_hash, population, sampled
from training.lineage import PLANNED_TAG
from training.snapshots import Plan, dates
from training.validate import plan_run

log = logging.getLogger(__name__)
PLANS = TypeAdapter(Plan)
FEWEST = 50
"""Rows: below, every interval of a metric is so wide that gates let chance decide."""
TOLERATED = 0.05
"""Share of members without a label up to which no reason has to be stated."""


def dataset(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Build the frame that the run needs from what its tags name, and store it with its plan."""
    tracking, source = Tracking(settings), load_dataset(spec.dataset)
    tags = tracking.run(run_id).tags
    as_of, until = (
        datetime.fromisoformat(tags[name]) for name in ("as_of", PLANNED_TAG)
    )
    version = table_versions(tags)[spec.dataset]
    planned = plan_run(settings, spec, source, until, version)
    frame = build_frame(settings, spec, source, planned.snapshots, as_of, version)
    train, test = at(frame, planned.train), at(frame, planned.test)
    unlabelled = without_label(settings, spec, planned, test)
    members = test.num_rows + unlabelled.num_rows
    reason = source.labels[spec.label].unlabelled
    if text := coverage(spec, unlabelled.num_rows, members, reason):
        log.warning("%s: %s", spec.name, text)
    if useless := unlearnable(spec, train, test):
        raise TrainingError(f"{spec.name}: {'; '.join(useless)}")
    digest = content_hash(train)
    tracking.log_json(run_id, PLANS.dump_python(planned, mode="json"), PLAN)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(frame, folder / FRAME)
        pq.write_table(unlabelled, folder / UNLABELLED)
        tracking.log_artifact(run_id, folder / UNLABELLED, DATA_FOLDER)
        tracking.log_dataset(
            run_id, folder / FRAME, name=spec.label, digest=digest, target="label"
        )
    params = {
        "train_snapshots": dates(planned.train),
        "test_snapshot": dates(planned.test),
        "train_rows": train.num_rows,
        "test_rows": test.num_rows,
        "test_members": members,
    }
    tracking.log(
        run_id, tags={"frame_sha256": digest, "unlabelled": text}, params=params
    )


def without_label(
    settings: Settings, spec: ModelSpec, planned: Plan, test: pa.Table
) -> pa.Table:
    """Members of the population with no row in the frame `test`.

    None where the rows that the label gives are the population: its own, and where nothing else
    lists it.
    """
    none = test.drop_columns("label").slice(0, 0)
    if spec.snapshots.rows == "label":
        return none
    try:
        parts = [population(settings, spec, each.start) for each in planned.test]
    except NoRequestError:
        return none
    members = sampled(spec, ibis.memtable(pa.concat_tables(parts))).to_pyarrow()
    key = ["event_timestamp", *spec.entity_key]
    others = members.join(test.select(key), key, join_type="left anti")
    return others.sort_by([(name, "ascending") for name in key]).select(
        members.column_names
    )


def coverage(spec: ModelSpec, unlabelled: int, members: int, reason: str | None) -> str:
    """Say how many members have no label; empty if all have one. reason: why, as the label says.

    Raises:
        TrainingError: they are too many, and no reason is stated.

    """
    if not unlabelled:
        return ""
    stated = f" ({reason})" if reason else ""
    text = f"{unlabelled:,} of {members:,} members of the population have no {spec.label}{stated}"
    if not reason and unlabelled > TOLERATED * members:
        raise TrainingError(
            f"label {spec.label}: {text}. Expected a label for each member, a narrower "
            f'[population], or a stated reason: Label(unlabelled="…") in {spec.dataset}.py'
        )
    return text


def unlearnable(
    spec: ModelSpec, train: pa.Table, test: pa.Table, fewest: int = FEWEST
) -> list[str]:
    """One line for each thing that makes training or its evaluation say nothing."""
    lines = []
    for name, rows, key in (("training", train, "train"), ("test", test, "test")):
        if rows.num_rows < fewest:
            found = f"expected at least {fewest} {name} rows, found {rows.num_rows}"
            lines.append(f"{found}; more: {key} of [snapshots] in {spec.name}.toml")
        if not _differ(rows["label"]):
            lines.append(f"every label of the {rows.num_rows} {name} rows is the same")
    labels = train["label"].unique().to_pylist()
    if absent := [name for at, name in enumerate(spec.classes) if at not in labels]:
        lines.append(
            f"no label of the {train.num_rows} training rows is {', '.join(absent)}"
        )
    both = pa.concat_tables([train, test], promote_options="permissive")
    lines += _label_problems(spec, both["label"])
    for feature, kind in spec.features.items():
        if not _differ(train[feature]):
            lines.append(
                f"{feature} has no two values in the {train.num_rows} training rows"
            )
        if INPUTS[kind] == "int64" and (nulls := both[feature].null_count):
            cast = f'derived={{"{feature}": _.{feature}.cast("float64")}}'
            lines.append(
                f"{feature} is null in {nulls} rows, which an {kind} cannot be: make it a double "
                f"in the spec and in its view (of Windows: {cast}), fill it in the view, or label "
                "no row before its entity's first"
            )
        if INPUTS[kind] == "double" and (
            infinite := pc.sum(pc.is_inf(both[feature])).as_py()
        ):
            lines.append(f"{feature} is infinite in {infinite} rows")
    return lines


def _label_problems(spec: ModelSpec, labels: pa.ChunkedArray) -> list[str]:
    """Say which labels are no value of the task."""
    lines = []
    if labels.null_count:
        lines.append(
            f"label {spec.label} is null in {labels.null_count} rows: leave these out"
        )
    expected = "0 or 1"
    is_value = pc.is_in(labels, pa.array([0, 1], labels.type))
    if spec.task == "regression":
        expected = f"a number up to {FLOAT32:.1e}"
        is_value = pc.less_equal(pc.abs(labels), FLOAT32)
    wrong_labels = labels.filter(pc.invert(is_value)).drop_null()
    if len(wrong_labels) and not spec.classes:
        lines.append(
            f"label {spec.label}: expected {expected}, found {wrong_labels[0]}"
        )
    return lines


def _differ(values: pa.ChunkedArray) -> bool:
    """Whether there are two values; nulls do not count."""
    return bool(pc.count_distinct(values).as_py() > 1)


def load_frame(tracking: Tracking, run_id: str) -> tuple[pa.Table, Plan]:
    """Fetch the frame and plan that `dataset` stored."""
    with fetched(tracking, run_id, f"{DATA_FOLDER}/{FRAME}") as file:
        frame = pq.read_table(file)
    return frame, PLANS.validate_json(read(tracking, run_id, PLAN))


def load_unlabelled(tracking: Tracking, run_id: str) -> pa.Table:
    """Fetch the members of the test snapshots' population without a label; no column `label`."""
    with fetched(tracking, run_id, f"{DATA_FOLDER}/{UNLABELLED}") as file:
        return pq.read_table(file)
