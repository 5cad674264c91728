"""What a run learnt from and with what: enough to build it again and compare."""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING

from stack.settings import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from pathlib import Path

    from stack.spec import ModelSpec

CODE = ("training", "feature_repo")


def code_tags() -> dict[str, str]:
    """Commit, whether the tree was clean, and hashes of lock and code."""
    changed = _git("status", "--porcelain")
    return {
        "git_commit": _git("rev-parse", "HEAD") or "unknown",
        "git_clean": "unknown" if changed is None else str(not changed).lower(),
        "lock_sha256": _hash([PROJECT / "requirements.lock"]),
        "code_sha256": code_hash(),
    }


def code_hash() -> str:
    """SHA-256 of every module that decides what a model becomes."""
    return _hash(sorted(path for room in CODE for path in (PROJECT / room).rglob("*.py")))


def spec_hash(spec: ModelSpec) -> str:
    return hashlib.sha256(spec.model_dump_json().encode()).hexdigest()


def fingerprint(spec: ModelSpec, newest: datetime, definition_hash: str) -> str:
    """Name everything that can make a new training run learn something else."""
    parts = (spec_hash(spec), newest.isoformat(), definition_hash, code_hash())
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
