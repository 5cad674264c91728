"""Stage 2: the training frame, in MLflow as the run's dataset."""

from __future__ import annotations

import logging
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from pydantic import TypeAdapter

from feature_repo.datasets import load_dataset
from feature_repo.validation import check
from mlflow_server.tracking import Tracking
from stack.errors import TrainingError
from training.artifacts import FRAME, PLAN, fetched, read
from training.frame import at, build_frame, content_hash
from training.snapshots import Plan
from training.validate import plan_run

if TYPE_CHECKING:
    import pyarrow as pa

    from stack.settings import Settings
    from stack.spec import ModelSpec

log = logging.getLogger(__name__)
PLANS = TypeAdapter(Plan)


def dataset(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Build the frame of every snapshot that the run needs and store it with its plan.

    Everything it reads is named by the run's tags, so that it can be built again.
    """
    tracking, source = Tracking(settings), load_dataset(spec.dataset)
    tags = tracking.run(run_id).tags
    as_of, version = datetime.fromisoformat(tags["as_of"]), int(tags[f"table.raw.{spec.dataset}"])
    planned = plan_run(settings, spec, source, as_of, version)
    frame = build_frame(settings, spec, source, planned.moments, as_of, version)
    _validate(settings, spec, tracking, run_id, frame)
    train = at(frame, planned.train)
    digest = content_hash(train)
    tracking.log_json(run_id, PLANS.dump_python(planned, mode="json"), PLAN)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FRAME
        pq.write_table(frame, path)
        tracking.log_dataset(run_id, path, name=spec.label, digest=digest, target="label")
    tracking.log(
        run_id,
        tags={"frame_sha256": digest},
        params={
            "train_snapshots": ", ".join(f"{moment:%Y-%m-%d}" for moment in planned.train),
            "test_snapshot": f"{planned.test:%Y-%m-%d}",
            "train_rows": train.num_rows,
            "test_rows": at(frame, [planned.test]).num_rows,
        },
    )


def frame_rules(spec: ModelSpec) -> dict[str, Any]:
    """Suite of a training frame, as Great Expectations' own JSON; features may only warn."""
    key = [spec.entity_key, "event_timestamp"]
    columns = [*key, *spec.features, "label"]
    rules: list[dict[str, Any]] = [
        {"type": "expect_table_columns_to_match_ordered_list", "kwargs": {"column_list": columns}},
        {"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": key}},
        *(_rule("not_be_null", column=name) for name in (*key, "label")),
        _rule("be_in_set", column="label", value_set=[0, 1]),
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
        tracking.finish(run_id, "FAILED")
        raise TrainingError(f"{spec.name}: the training frame broke its rules: {broken}")


def load_frame(tracking: Tracking, run_id: str) -> tuple[pa.Table, Plan]:
    """Fetch the frame and plan that `dataset` stored."""
    with fetched(tracking, run_id, f"data/{FRAME}") as file:
        frame = pq.read_table(file)
    return frame, PLANS.validate_json(read(tracking, run_id, PLAN))
