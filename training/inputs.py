"""The inputs of a training, as tags: code, packages, spec and feature definitions."""

import hashlib
import subprocess
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.packages import DISTRIBUTION
from core.project import CLONE, PROJECT, SHIPPED
from core.spec import ModelSpec
from feature_repo.definition import DEFINITION_TAG
from training.code_hash import code_hash

KEYS_WITHOUT_EFFECT: Any = {
    "monitoring": True,
    "promotion": True,
    "rollout": True,
    "schedule": True,
    "serving": {"missing_features"},
}
"""Keys of a spec that change neither a model nor whether it passes its gates."""


def input_tags(spec: ModelSpec, definitions: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of code, packages, spec and feature definitions, as they are here now.

    Args:
        spec: The model.
        definitions: Hashes of its feature service's definitions, by name.

    """
    changes = _git(PROJECT, "status", "--porcelain")
    lock_file = SHIPPED / "requirements.lock"
    # An installed Gyre may lie in the repository of somebody else.
    is_repository = (CLONE / ".git").exists()
    commit = _git(CLONE, "rev-parse", "HEAD") if is_repository else None
    tags = {
        "git_commit": _git(PROJECT, "rev-parse", "HEAD") or "unknown",
        "git_clean": "unknown" if changes is None else str(not changes).lower(),
        "gyre_commit": commit or f"release {version(DISTRIBUTION)}",
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
    """Return a hash that is the same for runs that would learn the same."""
    parts = [
        spec.model_dump_json(exclude=KEYS_WITHOUT_EFFECT),
        newest_snapshot.isoformat(),
        code_hash(spec),
    ]
    for name, definition in sorted(definitions.items()):
        parts.append(f"{name} {definition}")
    return _sha256("\n".join(parts))


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
