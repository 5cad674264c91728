"""Files that one stage leaves in its MLflow run for the next."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_server.tracking import Tracking

FRAME, PLAN = "frame.parquet", "plan.json"
UNLABELLED = "unlabelled.parquet"
"""Members of the population at the test snapshots that have no label."""
CANDIDATE = "candidate"
"""Folder of the trained model's files, before it is a registered version."""
PIPELINE_FILE = "pipeline.skops"
SPEC, ESTIMATOR = "spec.json", "estimator.json"
"""The model spec as it was for this run, and which of its estimators was fitted."""
PROOF, EVALUATION, GATES, PLOTS = "proof.json", "evaluation.json", "gates.json", "plots"


@contextmanager
def fetched(tracking: Tracking, run_id: str, path: str) -> Iterator[Path]:
    """The run's artifact `path` (file or folder), on disk for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="gyre-") as folder:
        yield tracking.download(run_id, path, Path(folder))


def read(tracking: Tracking, run_id: str, path: str) -> bytes:
    with fetched(tracking, run_id, path) as file:
        return file.read_bytes()
