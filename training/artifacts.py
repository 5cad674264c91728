"""Files that one stage leaves in its MLflow run for the next."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_server.api.tracking import DATA_FOLDER, Tracking

FRAME = "frame.parquet"
PLAN = "plan.json"
UNLABELLED = "unlabelled.parquet"
"""Members of the population at the test snapshots that have no label."""
REFERENCE = "reference.parquet"
"""Scored rows of the evaluation, which windows of predictions are compared with."""
CANDIDATE = "candidate"
"""Folder of the trained model's files, before it is a registered version."""
SPEC = "spec.json"
"""The model spec as it was for this run."""
ESTIMATOR = "estimator.json"
"""Type and parameters of the fitted estimator."""
EXPECTATION_PAGES = "expectations"
"""Folder of Great Expectations' pages on raw rows that ended a training."""
PROOF = "proof.json"
PLOTS = "plots"


@contextmanager
def fetched_artifact(tracking: Tracking, run_id: str, path: str) -> Iterator[Path]:
    """The run's artifact `path` (file or folder), on disk for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="gyre-") as folder:
        yield Path(tracking.download_artifacts(run_id, path, folder))


def artifact_bytes(tracking: Tracking, run_id: str, path: str) -> bytes:
    with fetched_artifact(tracking, run_id, path) as file:
        return file.read_bytes()


def store_table(tracking: Tracking, run_id: str, name: str, table: pa.Table) -> None:
    """Store a table where `gyre forget` finds the rows of an entity."""
    with tempfile.TemporaryDirectory(prefix="gyre-") as folder:
        file = Path(folder, name)
        pq.write_table(table, file)
        tracking.log_artifact(run_id, str(file), DATA_FOLDER)


def load_table(tracking: Tracking, run_id: str, name: str) -> pa.Table:
    with fetched_artifact(tracking, run_id, f"{DATA_FOLDER}/{name}") as file:
        return pq.read_table(file)
