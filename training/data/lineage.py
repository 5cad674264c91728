"""What a run learnt from and with what: enough to build it again and compare."""

import hashlib
import subprocess
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.settings import CLONE, PROJECT
from core.spec import ModelSpec
from core.tables.table import Table
from core.user_code import dataset_modules, user_modules
from feature_repo.definition import DEFINITION_TAG, TABLE_TAG
from mlflow_server.api.tracking import Run

CODE = (
    "core/spec/__init__.py",
    "core/spec/training.py",
    "feature_engine/engines/duckdb_engine.py",
    "feature_engine/engines/engine.py",
    "feature_engine/engines/periods.py",
    "feature_engine/engines/spark.py",
    "feature_repo/extensions/offline.py",
    "feature_engine/offline/raw.py",
    "feature_repo/published/specification.py",
    "feature_repo/published/service.py",
    "feature_engine/offline/views.py",
    "mlflow_server/model/pyfunc.py",
    "mlflow_server/manifest.py",
    "training/stages/dataset.py",
    "training/model/estimators.py",
    "training/data/frame.py",
    "training/evaluation/metrics.py",
    "training/model/onnx_export.py",
    "training/model/search.py",
    "training/data/snapshots.py",
    "training/stages/train.py",
)
"""What makes a frame and writes the files of a model. Definitions of features count by their own
hashes."""
WITHOUT_EFFECT: Any = {
    "monitoring": True,
    "promotion": True,
    "rollout": True,
    "schedule": True,
    "serving": {"missing_features"},
}
"""Keys of a spec that change neither a model nor whether it passes its gates."""
FINGERPRINT = "gyre.fingerprint"
PLANNED_TAG = "planned_as_of"
FIRST_EVENT_TAG = "gyre.first_event"
"""Tags of a run from which its snapshots are planned again, the same ones at each try."""
OUTCOME_PREFIXES = ("mlflow.", "gyre.", "gate", "outcome", "unlabelled", "version")
"""Beginnings of tags that say what became of a run; all others say what it was made of."""


def lineage(run: Run) -> dict[str, str]:
    """Return what a run and its version were made of, by tag."""
    return {
        name: value
        for name, value in sorted(run.tags.items())
        if value and not name.startswith(OUTCOME_PREFIXES)
    }


def input_tags(spec: ModelSpec, definitions: Mapping[str, str]) -> dict[str, str]:
    """Return code, packages, spec and feature definitions as they are here and now.

    Args:
        spec: The model.
        definitions: Of its feature service, by name.

    """
    changes = _git(PROJECT, "status", "--porcelain")
    lock_file = CLONE / "requirements.lock"
    tags = {
        "git_commit": _git(PROJECT, "rev-parse", "HEAD") or "unknown",
        "git_clean": "unknown" if changes is None else str(not changes).lower(),
        "gyre_commit": _git(CLONE, "rev-parse", "HEAD") or f"release {version('gyre')}",
        "lock_sha256": hashlib.sha256(lock_file.read_bytes()).hexdigest(),
        "code_sha256": code_hash(spec),
        "spec_sha256": _sha256(spec.model_dump_json()),
        "feature_service": spec.feature_service,
        "seed": str(spec.seed),
    }
    for name, definition in definitions.items():
        tags[DEFINITION_TAG + name] = definition
    return tags


def fingerprint(
    spec: ModelSpec, newest_snapshot: datetime, definitions: Mapping[str, str]
) -> str:
    """Return a hash that runs share which would learn the same."""
    parts = [
        spec.model_dump_json(exclude=WITHOUT_EFFECT),
        newest_snapshot.isoformat(),
        code_hash(spec),
    ]
    for name, definition in sorted(definitions.items()):
        parts.append(f"{name} {definition}")
    return _sha256("\n".join(parts))


def code_hash(spec: ModelSpec) -> str:
    """Return the SHA-256 of CODE and of the user's modules that the model is made by.

    Of a project beside the clone all packages and modules count: a dataset may use any.
    """
    files = {path for pattern in CODE for path in CLONE.glob(pattern)}
    if PROJECT != CLONE:
        files.update(PROJECT.glob("*.py"))
        for package in PROJECT.glob("*/__init__.py"):
            files.update(package.parent.rglob("*.py"))
    factories = [estimator.type for estimator in spec.estimators]
    if spec.training:
        factories.append(spec.training.function)
    for factory in factories:
        files.update(user_modules(factory))
    files.update(dataset_modules(spec.dataset))
    contents = {}
    for path in files:
        root = PROJECT if path.is_relative_to(PROJECT) else CLONE
        contents[path.relative_to(root).as_posix()] = path.read_bytes()
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(name.encode() + b"\0" + contents[name])
    return digest.hexdigest()


def table_tags(name: str, table: Table, table_version: int) -> dict[str, str]:
    """Pin a version of the raw table of dataset `name`."""
    tag = TABLE_TAG + name
    return {tag: str(table_version), f"{tag}.id": table.identity}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints; None where Gyre or a project came without its history."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()
