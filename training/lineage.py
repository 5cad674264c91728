"""What a run learnt from and with what: enough to build it again and compare."""

import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from core.settings import CLONE, PROJECT
from core.spec import ModelSpec
from core.storage import Table
from core.user_code import dataset_modules, user_modules
from feature_repo.definition import TABLE_TAG, Dataset
from feature_repo.definition_hash import DEFINITION_TAG
from mlflow_server.tracking import Run
from training.frame import content_hash

CODE = (
    "core/*spec.py",
    "feature_repo/engines/*.py",
    "feature_repo/extensions/offline.py",
    "feature_repo/features.py",
    "feature_repo/service.py",
    "mlflow_server/pyfunc.py",
    "mlflow_server/served_model.py",
    "training/dataset.py",
    "training/estimators.py",
    "training/evaluate.py",
    "training/frame.py",
    "training/gate.py",
    "training/metrics.py",
    "training/onnx_export.py",
    "training/search.py",
    "training/snapshots.py",
    "training/train.py",
    "training/validate.py",
)
"""What decides which model a run gives. Views and on-demand functions count by definitions."""
FINGERPRINT, PLANNED_TAG = "gyre.fingerprint", "planned_as_of"
OF_RUN = ("mlflow.", "gyre.", "gate", "outcome", "unlabelled", "version")
"""Beginnings of tags that say what became of a run; all others say what it was made of."""


def lineage(run: Run) -> dict[str, str]:
    """What a run and its version were made of, by tag."""
    tags = sorted(run.tags.items())
    return {
        name: value for name, value in tags if value and not name.startswith(OF_RUN)
    }


def run_tags(
    spec: ModelSpec, newest: datetime, definitions: Mapping[str, str]
) -> dict[str, str]:
    """Say what a run learns from and with what; runs that would learn the same share FINGERPRINT.

    newest: the test snapshot. definitions: of the feature service, by name.
    """
    tags = code_tags(spec) | {
        "feature_service": spec.feature_service,
        "spec_sha256": _sha256(spec.model_dump_json()),
        "seed": str(spec.seed),
    }
    parts = [tags["spec_sha256"], newest.isoformat(), tags["code_sha256"]]
    for name, definition in sorted(definitions.items()):
        tags[DEFINITION_TAG + name] = definition
        parts.append(f"{name} {definition}")
    return tags | {FINGERPRINT: _sha256("\n".join(parts))}


def code_tags(spec: ModelSpec) -> dict[str, str]:
    """Commits of project and Gyre, whether the project was clean, and hashes of lock and code."""
    changed = _git(PROJECT, "status", "--porcelain")
    return {
        "git_commit": _git(PROJECT, "rev-parse", "HEAD") or "unknown",
        "git_clean": "unknown" if changed is None else str(not changed).lower(),
        "gyre_commit": _git(CLONE, "rev-parse", "HEAD") or f"release {version('gyre')}",
        "lock_sha256": _hash([CLONE / "requirements.lock"]),
        "code_sha256": code_hash(spec),
    }


def code_hash(spec: ModelSpec) -> str:
    """SHA-256 of every module that decides what the model becomes; of datasets, of its own.

    Of a project beside the clone all its packages and modules count: a dataset may use any.
    """
    modules = {path for pattern in CODE for path in CLONE.glob(pattern)}
    if PROJECT != CLONE:
        modules.update(PROJECT.glob("*.py"))
        packages = (path.parent for path in PROJECT.glob("*/__init__.py"))
        modules.update(path for package in packages for path in package.rglob("*.py"))
    paths = [each.type for each in spec.estimators]
    paths += [spec.training.function] if spec.training else []
    modules.update(file for path in paths for file in user_modules(path))
    modules.update(dataset_modules(spec.dataset))
    return _hash(modules)


def table_tags(table: Table, version: int, dataset: Dataset) -> dict[str, str]:
    """Name the raw table, its version and the rows of that version, in whichever files they lie."""
    name = f"{TABLE_TAG}{dataset.name}"
    rows = table.read(version).sort_by(
        [(column, "ascending") for column in dataset.key]
    )
    return {
        name: str(version),
        f"{name}.id": table.identity,
        f"{name}.sha256": content_hash(rows),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    roots = (
        (PROJECT if path.is_relative_to(PROJECT) else CLONE, path) for path in paths
    )
    for name, path in sorted(
        (path.relative_to(root).as_posix(), path) for root, path in roots
    ):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None  # installed without its history
    return done.stdout.strip()
