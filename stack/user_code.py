"""Errors in what a user wrote: the modules of feature_repo/datasets/."""

from __future__ import annotations

from pathlib import Path
from traceback import TracebackException

from stack.errors import GyreError
from stack.settings import PROJECT

DATASETS, LONGEST = PROJECT / "feature_repo" / "datasets", 400


def in_one_line(exc: BaseException) -> str:
    """Return what `exc` says; of one that passed a dataset module, after its file and line."""
    if isinstance(exc, GyreError):
        return str(exc)
    found = TracebackException.from_exception(exc)
    lines, places = [*found.format_exception_only()], [(f.filename, f.lineno) for f in found.stack]
    if isinstance(exc, SyntaxError):  # its first lines say the place
        lines, places = lines[-1:], [*places, (exc.filename or "", exc.lineno)]
    own = [(Path(file), line) for file, line in places if Path(file).parent == DATASETS]
    own = [place for place in own if place[0].stem != "__init__"]
    where = "".join(f"{file.relative_to(PROJECT)}:{line}: " for file, line in own[-1:])
    return where + " ".join(lines[0].split())[:LONGEST]
