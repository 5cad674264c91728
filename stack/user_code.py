"""Errors in what a user wrote: the modules of feature_repo/datasets/."""

from __future__ import annotations

from pathlib import Path
from traceback import TracebackException

from stack.errors import GyreError
from stack.settings import PROJECT

DATASETS = PROJECT / "feature_repo" / "datasets"


def in_one_line(exc: BaseException) -> str:
    """Return what `exc` says; of one that passed a dataset module, after its file and line."""
    if isinstance(exc, GyreError):
        return str(exc)
    found = TracebackException.from_exception(exc)
    places = [(frame.filename, frame.lineno) for frame in found.stack]
    if isinstance(exc, SyntaxError):
        places.append((exc.filename or "", exc.lineno))
    own = [
        f"{Path(file).relative_to(PROJECT)}:{line}: "
        for file, line in places
        if Path(file).parent == DATASETS and Path(file).name != "__init__.py"
    ]
    message = exc.msg if isinstance(exc, SyntaxError) else "".join(found.format_exception_only())
    kind = f"{type(exc).__name__}: " if isinstance(exc, SyntaxError) else ""
    return "".join(own[-1:]) + kind + " ".join(message.split())
