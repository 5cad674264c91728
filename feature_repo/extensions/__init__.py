"""Feast extensions that `feature_store.yaml` names: subclasses of the stock classes."""

import sys
from pathlib import Path
from typing import Any

from core.user_code import in_one_line


def _say_problem(kind: Any, exc: BaseException, traceback: Any) -> None:
    """Name in one line the dataset module that cannot be imported: Feast imports all of them first."""
    line = in_one_line(exc)
    if not line.startswith("feature_repo/"):
        sys.__excepthook__(kind, exc, traceback)
        return
    sys.stderr.write(
        f"gyre: {line}: nothing was published; to publish the others: gyre up\n"
    )


if Path(sys.argv[0]).name == "feast":
    sys.excepthook = _say_problem
