"""Which versions are in a role and what they read, on file for Feast's side.

`feast apply` must know it while MLflow is down: `gyre up` runs it before MLflow answers. Whoever
makes promotion ledger and MLflow agree writes it; it lies beside Feast's registry.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from stack.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FOLDER = "live"


@dataclass(frozen=True)
class Live:
    """A version in a role; service: the Feast feature service it reads, empty if unknown."""

    model: str
    version: str
    role: str
    service: str


def read_live(folder: Path) -> list[Live]:
    """Every version in a role, of every model.

    Raises:
        DataError: a file is damaged.

    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found += [Live(**each) for each in json.loads(path.read_bytes())]
        except (ValueError, TypeError) as exc:
            raise DataError(f"{path}: damaged; remove it, serving writes it again") from exc
    return found


def write_live(folder: Path, model: str, live: Sequence[Live]) -> None:
    """Replace what is known of `model`, in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{model}.{os.getpid()}.part"
    part.write_text(json.dumps([asdict(each) for each in live]))
    part.rename(folder / f"{model}.json")
