"""What a run learnt from and with what: enough to build it again and compare."""

from __future__ import annotations

import hashlib
import re
import subprocess
from typing import TYPE_CHECKING

from stack.settings import PROJECT
from training.frame import content_hash

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from pathlib import Path

    from feature_repo.definition import Dataset
    from stack.spec import ModelSpec
    from stack.storage import Table

CODE = (
    "training/*.py", "feature_repo/*.py", "feature_repo/engines/*.py",
    "feature_repo/extensions/*.py", "stack/spec.py", "mlflow_server/served_model.py",
)  # fmt: skip
DATASETS = PROJECT / "feature_repo" / "datasets"
IMPORTED = re.compile(r"feature_repo\.datasets(?:\.| import )(\w+)")
TABLE_TAG = "table.raw."
LINEAGE = (
    "as_of", "git_commit", "git_clean", "lock_sha256", "code_sha256", "feature_service",
    "definition_sha256", "frame_sha256", "spec_sha256", "seed", "reason", "cause",
)  # fmt: skip
"""Tags of a run that its version has too, beside those of the raw table."""


def code_tags(spec: ModelSpec) -> dict[str, str]:
    """Commit, whether the tree was clean, and hashes of lock and code."""
    changed = _git("status", "--porcelain")
    return {
        "git_commit": _git("rev-parse", "HEAD") or "unknown",
        "git_clean": "unknown" if changed is None else str(not changed).lower(),
        "lock_sha256": _hash([PROJECT / "requirements.lock"]),
        "code_sha256": code_hash(spec),
    }


def code_hash(spec: ModelSpec) -> str:
    """SHA-256 of every module that decides what the model becomes; of datasets, of its own."""
    modules = {path for pattern in CODE for path in PROJECT.glob(pattern)}
    left = [spec.dataset]
    while left:
        module = DATASETS / f"{left.pop()}.py"
        if module.exists() and module not in modules:
            modules.add(module)
            left += IMPORTED.findall(module.read_text("utf-8"))
    return _hash(sorted(modules))


def spec_hash(spec: ModelSpec) -> str:
    return hashlib.sha256(spec_text(spec).encode()).hexdigest()


def spec_text(spec: ModelSpec) -> str:
    """The spec as its run keeps it; `spec_hash` is the SHA-256 of it."""
    return spec.model_dump_json()


def table_tags(table: Table, version: int, dataset: Dataset) -> dict[str, str]:
    """Name the raw table, its version and the rows of that version, in whichever files they lie.

    Raises:
        DataError: the version can no longer be read.

    """
    name = f"{TABLE_TAG}{dataset.name}"
    rows = table.read(version).sort_by([(column, "ascending") for column in dataset.key])
    return {name: str(version), f"{name}.id": table.identity, f"{name}.sha256": content_hash(rows)}


def fingerprint(spec: ModelSpec, newest: datetime, definition_hash: str) -> str:
    """Name everything that can make a new training run learn something else."""
    parts = (spec_hash(spec), newest.isoformat(), definition_hash, code_hash(spec))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(PROJECT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(PROJECT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None  # installed without its history
    return done.stdout.strip()
