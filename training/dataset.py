"""Stage 2: the training frame, in MLflow as the run's dataset."""

from __future__ import annotations

import logging
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from feature_repo.datasets import load_dataset
from feature_repo.validation import check
from mlflow_server.tracking import DATA_FOLDER, Tracking
from stack.errors import TrainingError
from stack.spec import FLOAT32
from training.artifacts import FRAME, PLAN, UNLABELLED, fetched, read
from training.coverage import coverage
from training.frame import at, build_frame, content_hash, population
from training.lineage import TABLE_TAG
from training.snapshots import Plan
from training.validate import plan_run

if TYPE_CHECKING:
    from stack.settings import Settings
    from stack.spec import ModelSpec

log = logging.getLogger(__name__)
PLANS = TypeAdapter(Plan)
FEWEST = 50
"""Rows: below, every interval of a metric is so wide that gates let chance decide."""


def dataset(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Build the frame of every snapshot that the run needs and store it with its plan.

    Everything it reads is named by the run's tags, so that it can be built again.
    """
    tracking, source = Tracking(settings), load_dataset(spec.dataset)
    tags = tracking.run(run_id).tags
    as_of, version = datetime.fromisoformat(tags["as_of"]), int(tags[f"{TABLE_TAG}{spec.dataset}"])
    planned = plan_run(settings, spec, source, as_of, version)
    frame = build_frame(settings, spec, source, planned.moments, as_of, version)
    _validate(settings, spec, tracking, run_id, frame)
    test = at(frame, [planned.test])
    members = population(settings, spec, source, planned.test)
    covered = coverage(spec, test, members, source.labels[spec.label].unlabelled)
    if covered.refusal:
        raise TrainingError(f"{spec.name}: {planned.test:%Y-%m-%d}: {covered.refusal}")
    if covered.text:
        log.warning("%s: %s: %s", spec.name, f"{planned.test:%Y-%m-%d}", covered.text)
    train = at(frame, planned.train)
    if useless := unlearnable(spec, train, test):
        raise TrainingError(f"{spec.name}: {'; '.join(useless)}")
    digest = content_hash(train)
    tracking.log_json(run_id, PLANS.dump_python(planned, mode="json"), PLAN)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FRAME
        pq.write_table(frame, path)
        tracking.log_dataset(run_id, path, name=spec.label, digest=digest, target="label")
        unlabelled = Path(folder) / UNLABELLED
        pq.write_table(covered.unlabelled, unlabelled)
        tracking.log_artifact(run_id, unlabelled, DATA_FOLDER)
    tracking.log(
        run_id,
        tags={"frame_sha256": digest, "unlabelled": covered.text},
        params={
            "train_snapshots": ", ".join(f"{moment:%Y-%m-%d}" for moment in planned.train),
            "test_snapshot": f"{planned.test:%Y-%m-%d}",
            "train_rows": train.num_rows,
            "test_rows": test.num_rows,
            "test_members": covered.members,
        },
    )


def unlearnable(
    spec: ModelSpec, train: pa.Table, test: pa.Table, fewest: int = FEWEST
) -> list[str]:
    """One line for each thing that makes training or its evaluation say nothing."""
    wrong = []
    for name, rows in (("training", train), ("test", test)):
        if rows.num_rows < fewest:
            wrong.append(f"expected at least {fewest} {name} rows, found {rows.num_rows}")
        if pc.count_distinct(rows["label"]).as_py() < 2:  # noqa: PLR2004  (two classes)
            wrong.append(f"every label of the {rows.num_rows} {name} rows is the same")
    for feature, kind in spec.features.items():
        if pc.count_distinct(train[feature]).as_py() < 2:  # noqa: PLR2004  (nulls do not count)
            wrong.append(f"{feature} has no two values in the {train.num_rows} training rows")
        both = pa.chunked_array([*train[feature].chunks, *test[feature].chunks])
        if kind == "int64" and both.null_count:
            gone = f"{feature} is null in {both.null_count} rows"
            wrong.append(f"{gone}: an int64 cannot be; make it a double, or fill it")
        infinite = pc.sum(pc.is_inf(both)).as_py() if kind == "double" else 0
        if infinite:
            wrong.append(f"{feature} is infinite in {infinite} rows")
    return wrong


def frame_rules(spec: ModelSpec) -> dict[str, Any]:
    """Suite of a training frame, as Great Expectations' own JSON; features may only warn."""
    key = [*spec.entity_key, "event_timestamp"]
    label = {
        "classification": _rule("be_in_set", column="label", value_set=[0, 1]),
        "regression": _rule("be_between", column="label", min_value=-FLOAT32, max_value=FLOAT32),
    }[spec.task]
    columns = [*key, *spec.features, "label"]
    rules: list[dict[str, Any]] = [
        {"type": "expect_table_columns_to_match_ordered_list", "kwargs": {"column_list": columns}},
        {"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": key}},
        *(_rule("not_be_null", column=name) for name in (*key, "label")),
        label,
    ]
    rules += [
        _rule("not_be_null", column=name, mostly=0.95) | {"severity": "warning"}
        for name in spec.features
    ]
    return {"name": spec.name, "expectations": rules}


def _rule(rule: str, **kwargs: object) -> dict[str, Any]:
    return {"type": f"expect_column_values_to_{rule}", "kwargs": kwargs}


def _validate(
    settings: Settings, spec: ModelSpec, tracking: Tracking, run_id: str, frame: pa.Table
) -> None:
    checked = check(spec.name, frame_rules(spec), frame, {}, settings.data_docs)
    tracking.log_json(run_id, checked.report, "frame_validation.json")
    for warning in checked.warnings:
        log.warning(warning.message)
    if checked.rejections:
        broken = "; ".join(finding.message for finding in checked.rejections)
        raise TrainingError(f"{spec.name}: the training frame broke its rules: {broken}")


def load_unlabelled(tracking: Tracking, run_id: str) -> pa.Table:
    """Fetch the members of the test snapshot's population that have no label, without `label`."""
    with fetched(tracking, run_id, f"{DATA_FOLDER}/{UNLABELLED}") as file:
        return pq.read_table(file)


def load_frame(tracking: Tracking, run_id: str) -> tuple[pa.Table, Plan]:
    """Fetch the frame and plan that `dataset` stored."""
    with fetched(tracking, run_id, f"data/{FRAME}") as file:
        frame = pq.read_table(file)
    return frame, PLANS.validate_json(read(tracking, run_id, PLAN))
