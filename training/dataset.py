"""Stage 2: the training frame, in MLflow as the run's dataset."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from pydantic import TypeAdapter

from feature_repo.datasets import load_dataset
from mlflow_server.tracking import Tracking
from training.artifacts import FRAME, PLAN, fetched, read
from training.frame import at, build_frame, content_hash
from training.snapshots import Plan
from training.validate import plan_run

if TYPE_CHECKING:
    import pyarrow as pa

    from stack.settings import Settings
    from stack.spec import ModelSpec

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


def load_frame(tracking: Tracking, run_id: str) -> tuple[pa.Table, Plan]:
    """Fetch the frame and plan that `dataset` stored."""
    with fetched(tracking, run_id, f"data/{FRAME}") as file:
        frame = pq.read_table(file)
    return frame, PLANS.validate_json(read(tracking, run_id, PLAN))
